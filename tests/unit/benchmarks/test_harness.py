"""The harness: alternation, spread, targets, and a JSON file without anything that names the machine."""

import argparse
import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.harness import Report, Row, Spread, alternate, at_least, at_most, main, print_report


def test_contestants_alternate_and_the_order_turns_around() -> None:
    calls: list[str] = []

    def run(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = alternate({"a": lambda: run("a"), "b": lambda: run("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_spread_keeps_the_median_and_the_extremes() -> None:
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0, 3)
    assert Spread.of([1.0, 2.0]).cells("x_ms") == {"x_ms": 1.5, "x_ms_low": 1.0, "x_ms_high": 2.0}
    with pytest.raises(ValueError, match="no repetition succeeded"):
        Spread.of([])


def test_checks_compare_with_their_target() -> None:
    assert at_most("start", 19.0, 20, "s").met
    assert not at_most("start", 20.5, 20, "s").met
    assert at_least("rate", 2.0, 2).met
    assert at_most("start", 1, 20, "s").target == "<= 20 s"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extra", type=int)


def measure(options: argparse.Namespace) -> Report:
    assert options.extra == 7
    rows: list[Row] = [{"name": "one", "ms": 1.5, "n": 12345}, {"name": "two", "ms": 2.5, "n": None}]
    return Report(rows=rows, checks=[at_most("ms", 2.5, 2, "ms")], settings={"quick": options.quick})


def test_main_prints_and_writes_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "x.json"
    code = main("x", measure, add_options, ["--quick", "--json", str(path), "--extra", "7"])
    assert code == 0
    text = path.read_text()
    written = json.loads(text)
    assert set(written) == {"benchmark", "measured_at", "machine", "versions", "settings", "rows", "checks"}
    assert written["checks"] == [{"name": "ms", "value": 2.5, "target": "<= 2 ms", "met": False}]
    assert written["settings"] == {"quick": True}
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["python"]
    assert socket.gethostname() not in text
    printed = capsys.readouterr().out
    assert "12,345" in printed
    assert "MISSED  ms: 2.5, target <= 2 ms" in printed


def test_a_wide_row_is_printed_downwards() -> None:
    console = Console(file=(out := io.StringIO()), width=60)
    print_report("wide", Report(rows=[{f"metric_{i}": i for i in range(20)}]), console)
    assert "metric_19" in out.getvalue()
