"""Procfiles."""

import pytest

from deploy.up.procfile import parse_procfile


def test_each_line_is_a_process_in_the_order_of_the_file() -> None:
    text = "# comment\n\nweb-1: exec env A=b:c serve \nworker_2:run\n"
    assert list(parse_procfile(text).items()) == [("web-1", "exec env A=b:c serve"), ("worker_2", "run")]


@pytest.mark.parametrize("text", ["nonsense", "a b: c", "a:", ": c", "a: b\na: c", "", "# only this"])
def test_what_is_no_process_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d is not|names no process"):
        parse_procfile(text)
