"""A page of documentation as Markdown: its runs of text, its sentences, its blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
GENERATED = ("docs/settings.md", "docs/security/settings.md", "docs/metrics.md", "docs/engines/metrics.md")
"""References made by `deploy.reference`: they are searched, not read."""
CONSTANT_NAME = re.compile(r"[A-Z][A-Z0-9_]+")


class Problem(NamedTuple):
    line: int  # from 1
    text: str


@dataclass(frozen=True)
class Page:
    """One Markdown file of the repository at `root`."""

    root: Path
    name: str  # relative to the root

    @property
    def path(self) -> Path:
        return self.root / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @property
    def is_generated(self) -> bool:
        return self.name in GENERATED

    @property
    def inlines(self) -> Iterator[tuple[Token, int, bool]]:
        """Every run of text, the line that it begins in, and whether it is a table's."""
        depth = 0
        for token in self.tokens:
            depth += {"table_open": 1, "table_close": -1}.get(token.type, 0)
            if token.type == "inline":
                yield token, line_of(token), depth > 0

    @property
    def sentences(self) -> Iterator[tuple[str, int]]:
        """The text outside tables, all code but names of constants left out, and the line that it begins in."""
        for token, line, in_table in self.inlines:
            if not in_table:
                yield "".join(map(_plain, token.children or ())), line


def line_of(token: Token) -> int:
    return token.map[0] + 1 if token.map else 1


def _plain(token: Token) -> str:
    code = f"`{token.content}`" if CONSTANT_NAME.fullmatch(token.content) else "``"
    return {"text": token.content, "code_inline": code, "softbreak": " ", "hardbreak": " "}.get(token.type, "")


def pages(root: Path) -> list[Page]:
    """Return all pages of a repository, by name."""
    found = sorted({path for pattern in PAGES for path in root.glob(pattern)})
    return [Page(root, path.relative_to(root).as_posix()) for path in found]
