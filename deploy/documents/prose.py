"""Rules of size and wording: short pages, no figures in sentences, a noun for a subject."""

import re
from collections.abc import Iterator

from deploy.documents.constants import is_told_right
from deploy.documents.page import Page, Problem

MAX_LINES = 120
MAX_COLUMNS = 100
FREE_OF_FIGURES = ("docs/results/", "docs/adr/")
"""Folders whose pages may state figures in sentences; everywhere else they belong in a table."""

_UNIT = (
    r"(?:[nµm]?s|seconds?|min(?:utes?)?|h(?:ours?)?|[KMGT]i?B|%|times|x|×|points"
    r"|(?:[KMGT]?i?B|[KMG]?bits?|tokens|requests|blocks|entries|events)/(?:s|token)|[KMGT]bit/s|[GT]FLOP/s)"
)
_FIGURE = re.compile(rf"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+)?(?: |\u00a0)?{_UNIT}(?!\w)|0\.\d+)")
_CONSTANT = re.compile(r"`(?P<name>[A-Z][A-Z0-9_]+)` \((?P<value>[^()]*)\)")
ALLOWED = ("64 KiB", "1 MiB")
"""Sizes of the wire contract that pages state: the first message of a stream, and every other."""
_BAD_SUBJECT = re.compile(r"(?:^|(?<=[.:;] ))(?:What|Who|Whoever|Whatever|That one)\b[^.?!]*[.!]")


def sizes(page: Page) -> Iterator[Problem]:
    """Pages are read in one sitting, without scrolling sideways."""
    lines = page.text.splitlines()
    if len(lines) > MAX_LINES:
        yield Problem(len(lines), f"{len(lines)} lines, more than {MAX_LINES}")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield Problem(number, f"{len(line)} columns, more than {MAX_COLUMNS}")


def figures(page: Page) -> Iterator[Problem]:
    """A measurement ages, a design does not. A constant may be told behind its name: `STALL_S` (6 s)."""
    if page.name.startswith(FREE_OF_FIGURES) or page.is_generated:
        return
    for text, line in page.sentences:
        for found in _FIGURE.finditer(_CONSTANT.sub("", text)):
            if found[0] not in ALLOWED:
                yield Problem(line, f"a figure in a sentence: {found[0]!r}")
        for constant in _CONSTANT.finditer(text):
            if not is_told_right(page.root, constant["name"], constant["value"]):
                yield Problem(line, f"not a constant of the code, or not its value: {constant[0]}")


def subjects(page: Page) -> Iterator[Problem]:
    """A sentence begins with the thing that it is about."""
    for text, line in page.sentences:
        for found in _BAD_SUBJECT.finditer(text):
            yield Problem(line, f"a sentence without a noun for its subject: {found[0]!r}")
