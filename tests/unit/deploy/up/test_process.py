"""One shell command: all it writes is read, and nothing it started outlives it."""

import os
import signal
from pathlib import Path

import pytest

from deploy.up.process import CHUNK_BYTES, Process
from tests.support.processes import gone
from tests.support.waiting import until


async def run(command: str, folder: Path) -> tuple[int, list[str]]:
    lines: list[str] = []
    process = await Process.start(command, folder, dict(os.environ))
    return await process.ended(lines.append), lines


async def test_every_line_is_read_also_a_long_one_and_the_last_without_an_end(tmp_path: Path) -> None:
    long = 3 * CHUNK_BYTES
    command = f"pwd; head -c {long} /dev/zero | tr '\\0' x; echo; printf '\\377 end' >&2; exit 7"
    assert await run(command, tmp_path) == (7, [str(tmp_path), "x" * long, "\ufffd end"])


async def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    code, (child,) = await run("sleep 60 & echo $!; exit 3", tmp_path)
    assert code == 3
    await until(lambda: gone(int(child)))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_reaches_its_children_too(tmp_path: Path, signum: signal.Signals) -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        process.send(signum)

    process = await Process.start("sleep 60 & echo $!; wait", tmp_path, dict(os.environ))
    assert await process.ended(on_line) == -signum
    await until(lambda: gone(int(lines[0])))
    process.send(signum)  # it is gone: nothing happens


async def test_an_error_of_the_reader_ends_the_process_and_is_raised(tmp_path: Path) -> None:
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line))
        raise OSError("the disk is full")

    process = await Process.start("echo $$; exec sleep 60", tmp_path, dict(os.environ))
    with pytest.raises(ExceptionGroup) as raised:
        await process.ended(on_line)
    assert raised.group_contains(OSError, match="the disk is full")
    assert gone(pids[0])
