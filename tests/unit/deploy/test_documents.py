"""The rules for pages of documentation, each on a page that breaks it and on one that keeps it."""

from pathlib import Path

import pytest

from deploy.documents.page import Page, pages
from deploy.documents.prose import MAX_COLUMNS, MAX_LINES, figures, sizes, subjects
from deploy.documents.references import commands, links, paths

ROOT = Path(__file__).resolve().parents[3]


ROUTER = """
LIMIT_S = 6.0
SIZE_BYTES: int = 2 * (1 << 20)
WAIT_MS = 500
NAMES = ("a",)
share = setting("PRFAAS_SHARE", 0.25)
folder = setting("PRFAAS_FOLDER")

class Router:
    async def route(self): ...

def score(): ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "services/gateway").mkdir(parents=True)
    (tmp_path / "services/gateway/router.py").write_text(ROUTER)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_start.py").write_text('def test_up(): run("make up")\n\ndef test_page(): read("page.md")\n')
    return tmp_path


def page(root: Path, text: str, name: str = "docs/design.md") -> Page:
    (root / name).write_text(text)
    return Page(root, name)


def test_a_page_is_short_and_narrow(root: Path) -> None:
    assert not list(sizes(page(root, "word\n" * MAX_LINES)))
    assert [p.line for p in sizes(page(root, "word\n" * (MAX_LINES + 1)))] == [MAX_LINES + 1]
    wide = "a" * (MAX_COLUMNS + 1)
    assert [p.line for p in sizes(page(root, f"word\n{wide}\n"))] == [2]
    assert [p.line for p in sizes(page(root, f"| {wide} |\n", "docs/results/speed.md"))] == [1]
    assert [p.line for p in sizes(page(root, f"{wide}\n", "docs/settings.md"))] == [1]


@pytest.mark.parametrize(
    "sentence",
    [
        "A step takes 12 ms.",
        "The share is 0.81 of the limit.",
        "It moves 1.07 GB at once.",
        "Python costs 4.9 s/GB.",
        "It is 1.4 times as fast.",
        "It reaches 42,000 tokens/s.",
        "It saves 9 % of the bytes.",
        "- A list waits\n  for 3 s too.",
    ],
)
def test_a_figure_does_not_stand_in_a_sentence(root: Path, sentence: str) -> None:
    assert list(figures(page(root, sentence)))
    assert not list(figures(page(root, sentence, "docs/results/speed.md")))


@pytest.mark.parametrize(
    "text",
    [
        "A block is 64 tokens and a key 32 bytes.",
        "A message holds 1 MiB.",
        "A stream is given up after `LIMIT_S` (6 s).",
        "| step |\n|---|\n| 12 ms |\n",
        "Python 3.11 runs it, see arXiv 2604.15039.",
        "    sleep 3 s",
        "`sleep 3 s` is code.",
        "Layer 0 of 2 sequences goes first.",
    ],
)
def test_tables_code_and_named_constants_may_have_figures(root: Path, text: str) -> None:
    assert not list(figures(page(root, text)))


@pytest.mark.parametrize(
    ("told", "is_right"),
    [
        ("`LIMIT_S` (6 s)", True),
        ("`LIMIT_S` (60 s)", False),
        ("`SIZE_BYTES` (2 MiB)", True),
        ("`SIZE_BYTES` (2 MB)", False),
        ("`WAIT_MS` (500 ms)", True),
        ("`WAIT_MS` (0.5 s)", True),
        ("`PRFAAS_SHARE` (25 %)", True),
        ("`PRFAAS_SHARE` (a quarter)", True),
        ("`PRFAAS_FOLDER` (none)", True),
        ("`NAMES` (1 name)", True),
        ("`NO_SUCH_LIMIT_S` (6 s)", False),
    ],
)
def test_a_constant_that_is_told_has_that_value_in_the_code(root: Path, told: str, is_right: bool) -> None:
    assert bool(list(figures(page(root, f"A stream is given up after {told}.")))) is not is_right


@pytest.mark.parametrize(
    "sentence", ["What is lost are reads.", "It is gone. Who asks pulls.", "- Whoever waits reads."]
)
def test_a_sentence_has_a_noun_for_its_subject(root: Path, sentence: str) -> None:
    assert list(subjects(page(root, sentence)))
    assert not list(subjects(page(root, "Readers say what they want. What is a block?")))


def test_links_lead_somewhere(root: Path) -> None:
    page(root, "# The *pool*, and `more`\n", "docs/pool.md")
    fine = "[a](pool.md) [b](pool.md#the-pool-and-more) [c](https://nowhere.invalid) [d](#here)\n\n# Here\n"
    assert not list(links(page(root, fine)))
    assert len(list(links(page(root, "[a](gone.md) [b](pool.md#gone) ![c](gone.png)")))) == 3


@pytest.mark.parametrize(
    ("path", "exists"),
    [
        ("services/gateway/router.py", True),
        ("services/gateway/", True),
        ("services/*/router.py", True),
        ("services/gateway/router.py:Router.route", True),
        ("services/gateway/router.py:score", True),
        ("services/gateway/router.py:LIMIT_S", True),
        ("services/gateway/router.py:Router.score", False),
        ("services/gateway/gone.py", False),
        ("shared/gone", False),
    ],
)
def test_paths_and_their_definitions_exist(root: Path, path: str, exists: bool) -> None:
    assert bool(list(paths(page(root, f"See `{path}`.")))) is not exists


def test_a_module_that_is_run_exists(root: Path) -> None:
    assert not list(paths(page(root, "    python -m services.gateway.router --help")))
    assert list(paths(page(root, "    python -m services.gateway.gone")))


@pytest.mark.parametrize(
    ("mark", "is_proven"),
    [
        ("<!-- run by tests/test_start.py -->", True),
        ("<!-- run by tests/test_start.py::test_up -->", True),
        ("<!-- not run: needs a GPU -->", True),
        ("<!-- not run: -->", False),
        ("<!-- run by tests/test_start.py::test_gone -->", False),
        ("<!-- run by tests/test_gone.py -->", False),
        ("A comment of another kind.", False),
    ],
)
@pytest.mark.parametrize("block", ["    make up    # starts it\n", "```sh\nmake up\n```\n"])
def test_a_command_says_who_runs_it(root: Path, mark: str, block: str, is_proven: bool) -> None:
    assert bool(list(commands(page(root, f"{mark}\n\n{block}")))) is not is_proven


def test_a_test_that_reads_a_page_may_run_all_of_it(root: Path) -> None:
    text = "<!-- run by tests/test_start.py -->\n\n```sh\nmake down\n```\n"
    assert list(commands(page(root, text)))
    assert not list(commands(page(root, text, "docs/page.md")))


def test_a_drawing_is_no_command(root: Path) -> None:
    assert not list(commands(page(root, "```\n a ──► b\n```\n")))


def test_the_pages_of_this_repository_are_found() -> None:
    names = {found.name for found in pages(ROOT)}
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/results/gpu.md"} <= names
