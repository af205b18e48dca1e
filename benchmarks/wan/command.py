"""The command line of a benchmark that needs an emulated WAN: where there can be none it says so, and fails."""

import argparse
import sys
from collections.abc import Callable

from benchmarks import harness
from benchmarks.harness import Report
from benchmarks.wan.network import WanUnavailable


def main(
    name: str,
    measure: Callable[[argparse.Namespace], Report],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    description: str | None = None,
) -> int:
    """Run it as `harness.main` does. Returns 1 on a machine that cannot have a WAN."""
    try:
        return harness.main(name, measure, add_options, description=description)
    except WanUnavailable as reason:
        sys.stderr.write(f"benchmarks.{name} needs an emulated WAN, which this machine cannot have: {reason}\n")
        return 1
