"""`benchmarks.handover`: what it counts is what was copied, and its rows are totals divided by the payload."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.handover.__main__ import account_rows, speed_row
from benchmarks.handover.counting import Counting, Used
from benchmarks.handover.shapes import SHAPES, keys_of, layout_of
from benchmarks.handover.way import HOPS, Moved
from tests.support.waiting import LIMIT_S

MIB = 1 << 20
COPIES = """
import os, socket, sys
sys.stdin.readline()
source, target = bytes(1 << 20), bytearray(1 << 20)
print("ready", flush=True)
sys.stdin.readline()
memoryview(target)[:] = source
one, other = socket.socketpair()
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
view = memoryview(source)
for start in range(0, len(source), 1 << 14):
    one.sendall(view[start : start + (1 << 14)])
    assert other.recv_into(memoryview(target)[start:], 1 << 14) == 1 << 14
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def counted(tmp_path: Path) -> Counting:
    found = Counting(tmp_path)
    if found.absent is not None:
        pytest.skip(found.absent)
    return found


def test_it_counts_copies_and_crossings(counted: Counting) -> None:
    counter = counted.counter()
    unwatched = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it copies too
    process = subprocess.Popen(
        [sys.executable, "-c", COPIES],
        env={**unwatched, **counter.environ()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:

        def told(line: str) -> Used:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == line
            return counter.used(process.pid)

        before = told("ready")
        used = told("done").since(before)
        process.communicate("\n", timeout=LIMIT_S)
    assert used.copied == MIB
    assert 2 * MIB <= used.crossed < 2 * MIB + 4096  # out and in again, and the lines
    assert 128 <= used.calls < 140


def test_without_a_compiler_the_rest_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRFAAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    counting = Counting(tmp_path)
    assert counting.absent is not None
    counter = counting.counter()
    assert counter.environ() == {}
    used = counter.used(os.getpid())
    assert used.faults > 0
    assert used.switches > 0
    (row, _) = account_rows(MIB, HOPS[0], "grpc", "used", [Moved(MIB, 1.0, 0.1, (used, used))])
    assert row["copied"] is None
    assert row["user_s_gb"] is not None


def test_copies_need_not_be_counted(tmp_path: Path) -> None:
    counting = Counting(tmp_path, copies=False)
    assert counting.absent == "not asked for"
    assert counting.counter().environ() == {}


def test_rows_are_totals_over_passes_divided_by_their_payload() -> None:
    writer, pool = Used(1.0, 0.5, 8, 4, 3e9, 1e9, 2000), Used(2.0, 0.0, 0, 0, 2e9, 1e9, 0)
    moves = [Moved(1_000_000_000, seconds, 0.004, (writer, pool)) for seconds in (1.0, 2.0, 4.0)]
    speed = speed_row(MIB, HOPS[0], "grpc", "used", moves)
    assert (speed["gb_per_s"], speed["first_ms"], speed["cpu_s_gb"], speed["copies"]) == (0.5, 4.0, 3.5, 7.0)
    rows = account_rows(MIB, HOPS[0], "grpc", "used", moves)
    assert [row["end"] for row in rows] == ["engine", "pool"]
    assert (rows[0]["copied"], rows[0]["calls_mb"], rows[0]["faults_mb"]) == (3.0, 2.0, 0.008)
    assert rows[1]["user_s_gb"] == 2.0
    (together,) = account_rows(MIB, HOPS[3], "grpc", "used", [Moved(10**9, 1.0, 0.1, (writer, pool))])
    assert (together["end"], together["copied"]) == ("all", 5.0)


def test_shapes_have_entries_of_their_sizes() -> None:
    assert all(layout_of(size).entry_bytes(0) == size for size in SHAPES)
    assert set(keys_of("one", 3)).isdisjoint(keys_of("other", 3))
