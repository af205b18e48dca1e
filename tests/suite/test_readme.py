"""The README's commands, as they are written there, against a suite that runs."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy.ready import curl_line
from tests.support.suite import ROOT, Suite

pytestmark = [pytest.mark.suite, pytest.mark.timeout(180)]

README = (ROOT / "README.md").read_text()
GATEWAY = "http://127.0.0.1:8000"
COMMANDS = re.findall(r"<!-- run by tests/suite/test_readme.py -->\n\n```sh\n(.*?)```", README, re.DOTALL)


def run(command: str, suite: Suite) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(GATEWAY, suite.url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_question_is_answered(suite: Suite) -> None:
    answer = json.loads(run(COMMANDS[0], suite))
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] >= len("Why is the sky blue?")


async def test_the_long_document_goes_east_and_is_cached_the_second_time(suite: Suite) -> None:
    def usage(output: str) -> tuple[int, int]:
        lines = [line.removeprefix("data: ") for line in output.splitlines() if line.startswith("data: {")]
        found = json.loads(lines[-1])["usage"]
        return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]

    num_tokens, cached = usage(run(COMMANDS[1], suite))
    assert cached == 0
    assert await suite.metric("prefill-east", "prefill_computed_tokens_total") >= num_tokens - 64
    assert usage(run(COMMANDS[1], suite))[1] >= num_tokens - 64


def test_all_commands_are_those_that_were_run() -> None:
    assert len(COMMANDS) == 2


def test_the_lines_that_a_reader_will_see_are_those_of_the_program() -> None:
    model = "smollm2-135m-instruct"
    assert f"{GATEWAY} serves {model}; try: {curl_line(GATEWAY, model).split()[0]}" in README


def test_the_first_five_minutes_have_the_same_command() -> None:
    page = (ROOT / "docs" / "first-five-minutes.md").read_text()
    assert COMMANDS[1] in page


def test_it_leads_to_every_page() -> None:
    """Directly, or over a page that it leads to."""
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    direct = {link for link in _links(README) if link.startswith("docs/")}
    behind = {f"docs/{link}" for page in direct & pages for link in _links((ROOT / page).read_text())}
    assert pages <= direct | behind


def _links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)#]+)", text))


def test_the_settings_are_in_the_code() -> None:
    variables = set(re.findall(r"PRFAAS_[A-Z_]+", README))
    source = "\n".join(path.read_text() for path in Path(ROOT).glob("s*/**/*.py"))
    assert variables
    assert {name for name in variables if f'"{name}"' not in source} == set()
