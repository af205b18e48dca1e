"""Finds passages that stand twice in the tree: `python -m deploy.duplicates` prints them; 1 if there is any.

Python is compared by its tokens, without imports, comments, docstrings and the values of literals: names count. Other
source is compared line by line. Lines without a name, and passages whose lines are alike, are tables.
"""

import io
import keyword
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 9
MIN_DISTINCT = 5
"""Different lines in a passage that is no table."""

SOURCE = ("*.py", "*.c", "*.h", "*.sh", "*Dockerfile", "*.yaml", "Makefile", "Procfile")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
LITERALS = {tokenize.STRING: '""', tokenize.NUMBER: "0"}


class SourceLine(NamedTuple):
    number: int
    content: str


class Passage(NamedTuple):
    """The same lines in two places."""

    first: str  # path:line
    second: str
    num_lines: int


def passages(texts: Mapping[str, str], max_lines: int = MAX_LINES) -> list[Passage]:
    """Return the passages of more than `max_lines` lines that two places of these files share, the longest first."""
    lines = {path: list(lines_of(path, text)) for path, text in texts.items()}
    length = max_lines + 1
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path, content in lines.items():
        for at in range(len(content) - length + 1):
            window = tuple(line.content for line in content[at : at + length])
            if len(set(window)) >= MIN_DISTINCT:
                places[window].append((path, at))
    found = []
    for same in places.values():
        for number, (path, at) in enumerate(same):
            for other, then in same[number + 1 :]:
                if not (path == other and then - at < length) and not _begins_before(lines, path, at, other, then):
                    num_lines = _length(lines[path][at:], lines[other][then:])
                    ends = f"{path}:{lines[path][at].number}", f"{other}:{lines[other][then].number}"
                    found.append(Passage(*ends, num_lines))
    return sorted(found, key=lambda passage: (-passage.num_lines, passage))


def lines_of(path: str, text: str) -> Iterable[SourceLine]:
    """Yield the lines of a file that say something, in a form in which equal ones are equal."""
    if path.endswith(".py"):
        yield from _python_lines(text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        content = " ".join(line.split())
        if any(map(str.isalpha, content)) and not content.startswith(("#", "//", "/*", "*")):
            yield SourceLine(number, content)


def _python_lines(text: str) -> Iterable[SourceLine]:
    tokens: dict[int, list[str]] = defaultdict(list)
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            is_docstring = all(part.type == tokenize.STRING for part in statement)
            if not is_docstring and statement[0].string not in ("import", "from"):
                for part in statement:
                    tokens[part.start[0]].append(LITERALS.get(part.type, part.string))
            statement = []
        elif token.type not in LAYOUT:
            statement.append(token)
    for number, parts in tokens.items():
        if any(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
            yield SourceLine(number, " ".join(parts))


def _begins_before(lines: Mapping[str, list[SourceLine]], path: str, at: int, other: str, then: int) -> bool:
    return at > 0 and then > 0 and lines[path][at - 1].content == lines[other][then - 1].content


def _length(one: list[SourceLine], other: list[SourceLine]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a.content != b.content), min(len(one), len(other)))


def main() -> int:
    listed = subprocess.run(["git", "ls-files", *SOURCE], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [path for path in listed.splitlines() if "_pb2" not in path and (ROOT / path).exists()]
    found = passages({path: (ROOT / path).read_text() for path in paths})
    for passage in found:
        print(f"{passage.first} and {passage.second} share {passage.num_lines} lines", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
