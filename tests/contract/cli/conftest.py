"""Commands against a real gateway over scripted workers."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import ScriptedSuite, running_suite
from tests.support.suite import ROOT
from tests.support.waiting import LIMIT_S


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


Prfaas = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


@pytest.fixture
async def url(suite: ScriptedSuite) -> str:
    async with suite.client.get("/livez") as response:
        return str(response.url.origin())


@pytest.fixture
def prfaas(url: str) -> Prfaas:
    """Return what runs a command as a process, while the gateway goes on in this one."""

    async def run(*arguments: str, input: str = "") -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.cli", *arguments, "--gateway", url),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                stdout, stderr = await process.communicate(input.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        assert b"Traceback" not in stderr, stderr.decode()
        return Ended(process.returncode, stdout.decode(), stderr.decode())

    return run
