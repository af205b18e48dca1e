"""docs/glossary.md: its words are those of the code."""

import re

import pytest

from tests.support.suite import ROOT

PAGE = (ROOT / "docs/glossary.md").read_text()
TERMS = re.findall(r"\*\*([\w -]+)\*\*", PAGE)
CODE = "\n".join(
    path.read_text() for folder in ("services", "shared", "simulator") for path in sorted((ROOT / folder).rglob("*.py"))
).lower()


def test_no_term_is_explained_twice() -> None:
    assert len(TERMS) == len(set(TERMS)) > 50


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_a_word_of_the_code(term: str) -> None:
    loose = re.sub("[- ]", "[-_ ]?", term.lower())
    assert re.search(loose, CODE)


@pytest.mark.parametrize("word", sorted(set(re.findall(r"\*([a-z]+)\*", PAGE)) - set(TERMS)))
def test_a_word_in_italics_has_an_entry(word: str) -> None:
    assert word in {"italics", "full", "streamed", "stored"} | {f"{term}s" for term in TERMS}
