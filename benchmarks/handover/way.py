"""The whole way of one lane: an engine and its pool in the east, a pool and an engine in the west, all processes."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.handover.counting import Counter, Counting, Used
from benchmarks.handover.pool import handing_pool
from benchmarks.handover.shapes import MIB, layout_of
from benchmarks.pool.lines import Child
from benchmarks.pool_process import PoolProcess
from deploy.cli.certs.command import make_absent
from deploy.cli.certs.folder import CertificateFolder

PASS_BYTES = 128 * MIB
POOL_BYTES = 3 * PASS_BYTES
HOPS = ("engine -> pool", "pool -> pool", "pool -> engine", "all three at once")
LANES = ("auto", "grpc", "socket", "socket_tls", "shared_memory")
"""PRFAAS_LANES of all processes. With `socket_tls` all of their connections are encrypted."""


class End(NamedTuple):
    """One process, and where it is counted."""

    pid: int
    counter: Counter

    def used(self) -> Used:
        return self.counter.used(self.pid)


class Moved(NamedTuple):
    """One pass over one hop."""

    num_bytes: int
    seconds: float
    first_s: float  # from the start to the first entry of the first layer, usable at the reader
    used: tuple[Used, ...]  # by each of the hop's processes, in the order of the bytes


@dataclass(frozen=True)
class HandoverWay:
    """The processes of one lane; commands go to one hop at a time."""

    writer: Child
    east: PoolProcess
    west: PoolProcess
    reader: Child
    ends: Mapping[str, End]
    num_blocks: int

    async def move(self, hop: str, name: str) -> Moved:
        """Move a prompt over one hop. `name` was moved over the hops before."""
        ends = [self.ends[end] for end in _ENDS[hop]]
        before = [end.used() for end in ends]
        answer, first_s = await _WORK[hop](self, name)
        used = tuple(end.used().since(then) for end, then in zip(ends, before, strict=True))
        return Moved(answer["bytes"], answer["seconds"], first_s, used)

    async def _publish(self, name: str) -> tuple[dict[str, Any], float]:
        await self.east.ask(do="watch", name=name, num_blocks=self.num_blocks)
        answer = _timed(_asked(self.writer, do="publish", name=name))
        watched = await self.east.ask(do="watched", name=name, num_blocks=self.num_blocks)
        return answer, watched["at"] - answer["started"]

    async def _pull(self, name: str) -> tuple[dict[str, Any], float]:
        answer = await self.west.ask(
            do="pull", name=name, num_blocks=self.num_blocks, address=self.east.address, dc="east"
        )
        return answer, answer["first_s"]

    async def _fetch(self, name: str) -> tuple[dict[str, Any], float]:
        answer = _timed(_asked(self.reader, do="fetch", name=name))
        return answer, answer["first_at"] - answer["started"]

    async def _all(self, name: str) -> tuple[dict[str, Any], float]:
        """The reader waits already when the writer begins, as decode does."""
        name = f"{name} at once"
        self.reader.send(do="fetch", name=name, source=self.east.address)
        written = _asked(self.writer, do="publish", name=name)
        read = self.reader.answer()
        return {**read, "seconds": read["ended"] - written["started"]}, read["first_at"] - written["started"]

    def staged(self) -> dict[str, Any]:
        """Copy the writer's pages to the host and back."""
        return _asked(self.writer, do="stage")


_ENDS = {
    "engine -> pool": ("writer", "east"),
    "pool -> pool": ("east", "west"),
    "pool -> engine": ("west", "reader"),
    "all three at once": ("writer", "east", "west", "reader"),
}
_DCS = {"writer": "east", "east": "east", "west": "west", "reader": "west"}
_WORK = {
    "engine -> pool": HandoverWay._publish,
    "pool -> pool": HandoverWay._pull,
    "pool -> engine": HandoverWay._fetch,
    "all three at once": HandoverWay._all,
}


@asynccontextmanager
async def open_way(counting: Counting, lane: str, device: str, entry_bytes: int) -> AsyncIterator[HandoverWay]:
    """Start the four processes of a lane; end them with the context."""
    num_blocks = PASS_BYTES // layout_of(entry_bytes).block_bytes
    counters = {end: counting.counter() for end in _ENDS["all three at once"]}
    stack = AsyncExitStack()
    security: dict[str, str] = {}
    if lane == "socket_tls":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="prfaas-certs-"))
        security = _certified(Path(folder))
    environs = {
        end: {**_lane_environ(lane), **security, "PRFAAS_DC": _DCS[end], **counter.environ()}
        for end, counter in counters.items()
    }

    def engine(end: str, pool: PoolProcess) -> Child:
        module = ("-m", "benchmarks.handover.engine", pool.address, device, str(entry_bytes), str(num_blocks))
        return Child([sys.executable, *module], environs[end])

    def command(end: str) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in environs[end].items())]

    async with (
        stack,
        handing_pool(command("east"), "east", entry_bytes) as east,
        handing_pool(command("west"), "west", entry_bytes) as west,
    ):
        writer, reader = engine("writer", east), None
        try:
            reader = engine("reader", west)
            pids = {"writer": writer.pid, "east": east.process.pid, "west": west.process.pid, "reader": reader.pid}
            ends = {end: End(pid, counters[end]) for end, pid in pids.items()}
            yield HandoverWay(writer, east, west, reader, ends, num_blocks)
        finally:
            writer.close()
            if reader is not None:
                reader.close()


def _certified(folder: Path) -> dict[str, str]:
    """Make certificates for all ends; return the settings that use them."""
    make_absent(CertificateFolder(folder), ["east", "west"], (), 1)
    return {"PRFAAS_SECURITY": "mtls", "PRFAAS_CERTS": str(folder)}


def _lane_environ(lane: str) -> dict[str, str]:
    chosen = {} if lane == "auto" else {"PRFAAS_LANES": lane.removesuffix("_tls")}
    return {**chosen, "PRFAAS_POOL_BYTES": str(POOL_BYTES), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def _asked(child: Child, **command: Any) -> dict[str, Any]:
    child.send(**command)
    return child.answer()


def _timed(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "seconds": answer["ended"] - answer["started"]}
