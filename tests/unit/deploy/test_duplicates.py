"""Passages that stand twice are found, whatever their imports, comments and literals; tables are none."""

import pytest

from deploy.duplicates import Passage, passages

BODY = "\n".join(f"    step_{number} = first(step, {number})" for number in range(12))
FIRST = f'"""One."""\nimport os\n\n\ndef one():\n{BODY}\n    return "one"\n'


def renumbered(text: str) -> str:
    return text.replace("first(step, 1", "first(step, 7").replace(", 3)", ", 3.5)")


def test_a_passage_with_other_values_comments_and_imports_is_the_same() -> None:
    second = f"from a import b\n\n# why\nx = 1\n\n\ndef two():\n{renumbered(BODY)}  # so\n"
    assert passages({"a.py": FIRST, "b.py": second}) == [Passage("a.py:6", "b.py:8", 12)]


def test_names_count() -> None:
    assert passages({"a.py": FIRST, "b.py": FIRST.replace("first(", "second(")}) == []


def test_twice_in_one_file() -> None:
    text = f"def one():\n{BODY}\n\n\ndef two():\n{BODY}\n"
    assert passages({"a.py": text}) == [Passage("a.py:2", "a.py:17", 12)]


@pytest.mark.parametrize("num_lines", [9, 10])
def test_the_limit_is_ten_lines(num_lines: int) -> None:
    body = "\n".join(BODY.splitlines()[:num_lines])
    texts = {"a.py": f"def a():\n{body}\n", "b.py": f"def b():\n{body}\n"}
    assert len(passages(texts)) == (num_lines == 10)


def test_tables_are_no_passages() -> None:
    rows = "\n".join(f'    Row("name", {number}),' for number in range(40))
    numbers = "\n".join(f'    "{number}": [{number}, None],' for number in range(40))
    assert passages({"a.py": f"A = [\n{rows}\n]\n", "b.py": f"B = [\n{rows}\n]\nC = {{\n{numbers}\n}}\n"}) == []
    assert passages({"a.py": f"A = {{\n{numbers}\n}}\n", "b.py": f"B = {{\n{numbers}\n}}\n"}) == []


def test_other_source_is_compared_line_by_line() -> None:
    lines = [f"RUN step {number}" for number in range(11)]
    texts = {"Dockerfile": "\n".join(["FROM a", *lines]), "x/Dockerfile": "# b\nFROM b\n" + "\n\n".join(lines)}
    assert passages(texts) == [Passage("Dockerfile:2", "x/Dockerfile:3", 11)]
