"""What all benchmarks share: options, alternation, medians with spread, targets, a table and a JSON file."""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")
Cell = str | int | float | bool | None
Row = dict[str, Cell]

ROOT = Path(__file__).resolve().parent.parent
WIDEST = 12
FILE_WIDTH = 140
VERSIONED = ("prfaas", "torch", "grpcio", "aiokafka", "aiohttp", "numpy")


@dataclass(frozen=True)
class Check:
    """One target that was named before the measurement, and whether it was met."""

    name: str
    value: float
    target: str
    met: bool


def at_most(name: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(name, round(value, 4), f"<= {limit:g} {unit}".rstrip(), value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(name, round(value, 4), f">= {limit:g} {unit}".rstrip(), value >= limit)


@dataclass(frozen=True)
class Spread:
    """Repetitions of one measurement; the median is the figure to quote, the rest says how far to trust it."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if not values:
            raise ValueError("no repetition succeeded")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def cells(self, name: str, digits: int = 2) -> Row:
        """`name` for the median, `name_low` and `name_high` for the extremes."""
        return {
            name: round(self.median, digits),
            f"{name}_low": round(self.low, digits),
            f"{name}_high": round(self.high, digits),
        }


def alternate(contestants: Mapping[str, Callable[[], T]], repetitions: int) -> dict[str, list[T]]:
    """Runs every contestant once per round, forwards and backwards in turn, so that drift of the machine hits all."""
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        names = list(contestants)
        for name in names if repetition % 2 == 0 else reversed(names):
            results[name].append(contestants[name]())
    return results


@dataclass
class Report:
    """What a benchmark found; `rows` may differ in their keys."""

    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    settings: Row = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(check.met for check in self.checks)


def machine() -> Row:
    """The kind of machine, without anything that names this one."""
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": ", ".join(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus))) or None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> Row:
    found: Row = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["commit"] = _output("git", "-C", str(ROOT), "describe", "--always", "--dirty").strip() or None
    return found


def write_json(name: str, report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": report.settings,
        "rows": report.rows,
        "checks": [asdict(check) for check in report.checks],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_report(name: str, report: Report, console: Console) -> None:
    """One table per set of columns, then the targets. A row too wide for a terminal is printed downwards."""
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in report.rows:
        tables.setdefault(tuple(row), []).append(row)
    for columns, rows in tables.items():
        if len(columns) > WIDEST:
            for row in rows:
                console.print(_table(name, ("metric", "value"), [{"metric": k, "value": v} for k, v in row.items()]))
        else:
            console.print(_table(name, columns, rows))
    for check in report.checks:
        verdict = "met   " if check.met else "MISSED"
        console.print(f"{verdict}  {check.name}: {check.value:g}, target {check.target}", highlight=False)


def main(
    name: str,
    measure: Callable[[argparse.Namespace], Report],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> int:
    """The command line of a benchmark. Returns 0 also when a target was missed: that is a finding, not a failure."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, proves little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    add_options(parser)
    options = parser.parse_args(argv)
    report = measure(options)
    console = Console()
    print_report(name, report, console if console.is_terminal else Console(width=FILE_WIDTH))
    if options.json is not None:
        write_json(name, report, options.json)
    return 0


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_text(row[column]) for column in columns))
    return table


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.2f}"
    return (
        f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell if cell is not None else "")
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor()


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
