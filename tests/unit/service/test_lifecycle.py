"""Work in flight, background loops, and how a process ends."""

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.errors import BadRequest, Draining, SettingsError
from shared.service.lifecycle import InFlight, Lifecycle, background, run_service
from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]


async def test_inflight_counts_and_refuses() -> None:
    inflight = InFlight()
    assert await inflight.idle(0)
    with inflight.track():
        assert inflight.count == 1
        assert not await inflight.idle(0.01)
        inflight.drain()
        with pytest.raises(Draining), inflight.track():
            pass
        with inflight.track(even_when_draining=True):
            assert inflight.count == 2
        waiter = asyncio.create_task(inflight.idle(5))
        await asyncio.sleep(0)
    assert await waiter
    assert inflight.count == 0


async def test_background_loops_end_with_the_block() -> None:
    ended = []

    async def loop() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("loop")

    async with background() as jobs:
        jobs.start(loop(), name="loop")
        await asyncio.sleep(0)
    assert ended == ["loop"]


async def test_a_crashed_loop_ends_the_block() -> None:
    async def crash() -> None:
        raise RuntimeError("boom")

    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 - the block is what ends
        async with background() as jobs:
            jobs.start(crash(), name="crash")
            await asyncio.sleep(60)
    assert raised.group_contains(RuntimeError, match="boom")


async def _bad_settings(_: Lifecycle) -> None:
    raise ExceptionGroup("in a task group", [SettingsError("PRFAAS_A: bad\nPRFAAS_B: worse")])


async def _crash(_: Lifecycle) -> None:
    raise ExceptionGroup("two", [SettingsError("PRFAAS_A: bad"), RuntimeError("boom")])


async def _failed(_: Lifecycle) -> None:
    raise BadRequest("cannot")


async def _done(_: Lifecycle) -> None:
    pass


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_service(_done) == 0
    assert run_service(_crash) == 1
    assert run_service(_failed) == 1
    capsys.readouterr()
    assert run_service(_bad_settings) == 2
    assert capsys.readouterr().err == "bad settings:\n  PRFAAS_A: bad\n  PRFAAS_B: worse\n"


@asynccontextmanager
async def child(body: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service process whose main has `body`; it has printed "up" when this yields."""
    program = textwrap.dedent(
        """
        import asyncio, sys, threading, time
        from shared.service.lifecycle import run_service

        async def main(lifecycle):
            try:
                print("up", flush=True)
        {body}
            finally:
                print("finally", flush=True)

        sys.exit(run_service(main))
        """
    ).format(body=textwrap.indent(textwrap.dedent(body), " " * 8))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"up\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_ends_in_order(number: signal.Signals) -> None:
    async with child("await lifecycle.stopping.wait(); print('drained', flush=True)") as process:
        os.kill(process.pid, number)
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
        text = out.decode()
        assert text.index("shutdown_started") < text.index("drained") < text.index("finally")
        assert process.returncode == 0


async def test_a_second_signal_forces() -> None:
    async with child(
        "await lifecycle.stopping.wait(); print('draining', flush=True); await asyncio.sleep(60)"
    ) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGTERM)
        while b"draining" not in await asyncio.wait_for(process.stdout.readline(), LIMIT_S):
            pass
        os.kill(process.pid, signal.SIGTERM)
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert b"shutdown_forced" in out
        assert b"finally" in out
        assert process.returncode == 1


async def test_a_stuck_thread_cannot_keep_a_forced_process_alive() -> None:
    body = """
        threading.Thread(target=time.sleep, args=(60,)).start()
        await lifecycle.stopping.wait(); print('draining', flush=True); await asyncio.sleep(60)
    """
    async with child(body) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGTERM)
        while b"draining" not in await asyncio.wait_for(process.stdout.readline(), LIMIT_S):
            pass
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert process.returncode == 1
