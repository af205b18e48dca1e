"""Runs one section of the benchmark in a process of its own; settings come from the environment, as for a service."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.harness import ROOT, Check, Report

SECTIONS = ("limits", "overhead", "tail", "emission", "memory", "costs", "masks")
"""Modules of this package whose `measure(quick)` returns a report."""
TIMEOUT_S = 1200.0


def run(section: str, environ: Mapping[str, str], quick: bool) -> Report:
    """Raises `RuntimeError` with the child's last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        command = [sys.executable, "-m", "benchmarks.engine.child", section, str(path), *(["--quick"] if quick else [])]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{section}: {done.stderr[-2000:]}")
        content = json.loads(path.read_text())
    return Report(content["rows"], [Check(**check) for check in content["checks"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    measure = import_module(f"benchmarks.engine.{options.section}").measure
    report: Report = asyncio.run(measure(options.quick))
    options.path.write_text(json.dumps({"rows": report.rows, "checks": [asdict(check) for check in report.checks]}))


if __name__ == "__main__":
    main()
