"""Slower machines on a faster one: a process that gets a share of a core, by the kernel's bandwidth control."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.wan.network import WanUnavailable

PERIOD_US = 20_000
"""How often a process gets its share: short against a step of a model, so that the process is slow, not halted."""

MOST_SHARES, MOST_WEIGHT = 262_144, 10_000
"""The share is to be had, whatever else runs: groups compete by weight before bandwidth bounds them."""

FIRST, SECOND = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
"""Where the two versions of control groups lie."""


@contextmanager
def held_to(pid: int, share: float, period_us: int = PERIOD_US) -> Iterator[None]:
    """Give a process, its threads and what it starts so much of one core's time at most. Raises `WanUnavailable`.

    Whoever has had its share runs again up to a tick of the kernel after the next period's begin, if others run then:
    where several shares of one core add up to most of it, a long period lets each of them have its own.
    """
    quota_us = round(share * period_us)
    is_first = (FIRST / "cpu.cfs_quota_us").exists() or (FIRST / "tasks").exists()
    group = (FIRST if is_first else SECOND) / f"prfaas-{os.getpid()}-{pid}"
    try:
        group.mkdir()
        if is_first:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            (group / "cpu.shares").write_text(str(MOST_SHARES))
        else:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            (group / "cpu.weight").write_text(str(MOST_WEIGHT))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise WanUnavailable(f"no control group that holds a process to a share of a core: {error}") from None
    try:
        yield
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    for _ in range(50):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)  # the kernel has not taken note of the end of its last process yet
        else:
            return
