"""The whole suite with its engines on one device, each in a process of its own: time to first token and between tokens.

A prompt is asked for in three ways. *streamed*: the prefill worker of the other datacenter computes it, decode runs on
what has arrived. *stored*: decode is asked only when prefill has handed over the last entry, as a suite that stores and
forwards would; pulling from the other pool and landing in pages come after that. *cached*: asked again.
"""

import asyncio
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.device.model_files import write_model
from benchmarks.device.shapes import BLOCK_TOKENS, DevicePlan, ServedShape
from benchmarks.harness import Report, Row, Spread
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import new_session
from benchmarks.suite import suite
from shared.model.attention.select import AttentionName
from shared.model.files.catalog import ModelFiles, resolve
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import Channels, rpc_errors

TIMEOUT_S = 120.0
POOL_AHEAD_BYTES = 4 << 30  # some of the longest prompts
_POOL = "exec env PRFAAS_DC={dc} PRFAAS_GRPC_PORT={{pool_{dc}}} PRFAAS_HTTP_PORT={{{status}}} {{pool}} {{cachepool}}"
_LINES = {
    "broker": "exec python -m deploy.devbroker --port {broker}",
    "cachepool-east": _POOL.format(dc="east", status="status0"),
    "cachepool-west": _POOL.format(dc="west", status="status1"),
    "prefill-east": "exec env PRFAAS_DC=east PRFAAS_GRPC_PORT={prefill} PRFAAS_HTTP_PORT={status2} "
    "PRFAAS_POOL=127.0.0.1:{pool_east} {engine} python -m services.prefill",
    "decode-west": "exec env PRFAAS_DC=west PRFAAS_GRPC_PORT={decode} PRFAAS_HTTP_PORT={status3} "
    "PRFAAS_POOL=127.0.0.1:{pool_west} {engine} python -m services.decode",
    "gateway": "exec env PRFAAS_DC=west PRFAAS_HTTP_PORT={gateway} python -m services.gateway",
}
_STATUS = {
    "cachepool-east": "status0",
    "cachepool-west": "status1",
    "prefill-east": "status2",
    "decode-west": "status3",
}
_PORTS = ("broker", "pool_east", "pool_west", "prefill", "decode", "gateway", *_STATUS.values())


@dataclass(frozen=True)
class DeviceModel:
    """A model on disk, and how the processes that serve it are set."""

    shape: ServedShape
    files: ModelFiles
    cache: Path
    engine: str  # settings of both engines, as `env` takes them

    @classmethod
    def write(cls, shape: ServedShape, scratch: Path, device: torch.device, attention: AttentionName) -> "DeviceModel":
        directory, cache = scratch / shape.name.replace(" ", "-"), scratch / "cache"
        write_model(directory, cache, shape.config, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        engine = (
            f"PRFAAS_DEVICE={device} PRFAAS_ATTENTION={attention} PRFAAS_KV_BYTES={shape.kv_bytes} "
            f"PRFAAS_CHUNK_TOKENS={shape.chunk_tokens}"
        )
        return cls(shape, resolve(str(directory), cache), cache, engine)


def procfile(ports: Mapping[str, int], pool: str, engine: str, without: Sequence[str]) -> str:
    """Return the lines of the suite's processes but those of `without`, which the last one does not wait for.

    `pool` and `engine` are settings as `env` takes them.
    """
    lines = {name: line for name, line in _LINES.items() if name not in without}
    also = " ".join(str(ports[port]) for name, port in _STATUS.items() if name in lines)
    lines["ready"] = f"exec python -m deploy.ready --gateway http://127.0.0.1:{{gateway}} --also {also}"
    values = {**ports, "pool": pool, "engine": engine, "cachepool": "python -m services.cachepool"}
    return "".join(f"{name}: {line.format(**values)}\n" for name, line in lines.items())


@contextmanager
def running_suite(model: DeviceModel, without: Sequence[str] = ()) -> Iterator[dict[str, int]]:
    """Serve the model with all processes but those of `without`; yield the ports by name."""
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    environ = {
        "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",  # where there is a prefill worker it is used
        "PRFAAS_MODEL": str(model.files.source),
        "PRFAAS_CACHE_DIR": str(model.cache),
        "PRFAAS_KAFKA": f"127.0.0.1:{ports['broker']}",
        "PRFAAS_MAX_MODEL_LEN": str(model.shape.max_tokens),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "Procfile"
        pool = (
            f"PRFAAS_POOL_BYTES={model.shape.pool_bytes} PRFAAS_POOL_AHEAD_BYTES={POOL_AHEAD_BYTES} "
            "PRFAAS_POOL_OBJECT_URL="
        )
        path.write_text(procfile(ports, pool, model.engine, without))
        with suite(path, **environ):
            yield ports


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def measure(plan: DevicePlan, device: torch.device, attention: AttentionName) -> Report:
    report = Report()
    for shape in plan.served:
        with tempfile.TemporaryDirectory() as scratch:
            model = DeviceModel.write(shape, Path(scratch), device, attention)
            with running_suite(model) as ports:
                report.rows += asyncio.run(_Asker(model.files, shape, ports, plan).rows())
    return report


class _Asker:
    """Asks a running suite; no prompt twice unless that is the point."""

    def __init__(self, files: ModelFiles, served: ServedShape, ports: dict[str, int], plan: DevicePlan) -> None:
        self.files = files
        self.served = served
        self.ports = ports
        self.plan = plan
        self._num_asked = 0

    async def rows(self) -> list[Row]:
        rows: list[Row] = []
        async with new_session() as self._session, Channels() as self._channels:
            await self._streamed(self.served.lengths[0])  # warms up
            for length in self.served.lengths:
                rows += await self._length(length)
            rows.append(await self._together(self.served.lengths[0]))
        return rows

    async def _length(self, length: int) -> list[Row]:
        repetitions = range(self.plan.repetitions)
        streamed = [await self._streamed(length) for _ in repetitions]
        stored = [await self._stored(length) for _ in repetitions]
        return [
            self._row("streamed", length, [first for first, _ in streamed]),
            self._row("stored", length, stored),
            self._row("cached", length, [again for _, again in streamed]),
        ]

    async def _streamed(self, length: int) -> tuple[RequestOutcome, RequestOutcome]:
        prompt = self._prompt(length)
        first = await self._complete(prompt)
        return first, await self._complete(prompt)

    async def _stored(self, length: int) -> RequestOutcome:
        prompt = self._prompt(length)
        started = time.perf_counter()
        await self._prefill(prompt)
        prefilled_s = time.perf_counter() - started
        await asyncio.sleep(0.3)  # not counted: until the gateway has heard of it
        outcome = await self._complete(prompt)
        outcome.token_times_s = [at_s + prefilled_s for at_s in outcome.token_times_s]
        return outcome

    async def _prefill(self, prompt: Sequence[int]) -> None:
        request = pb.PrefillRequest(
            token_ids=prompt,
            num_blocks=(len(prompt) - 1) // BLOCK_TOKENS,
            fingerprint=self.files.fingerprint,
            layout_hash=self.files.config().kv_layout(BLOCK_TOKENS, "bfloat16").hash,
        )
        with rpc_errors("prefill"):
            stub = PrefillStub(self._channels.get(f"127.0.0.1:{self.ports['prefill']}"))
            async for _ in stub.Prefill(request, timeout=TIMEOUT_S):
                pass

    async def _together(self, length: int) -> Row:
        """Several at once, all cached: what a running batch gives."""
        prompts = [self._prompt(length) for _ in range(self.served.batch)]
        for prompt in prompts:
            await self._complete(prompt)
        ask: Callable[[Sequence[int]], Awaitable[RequestOutcome]] = self._complete
        outcomes = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        return self._row(f"cached, {len(prompts)} at once", length, outcomes)

    async def _complete(self, prompt: Sequence[int]) -> RequestOutcome:
        url = f"http://127.0.0.1:{self.ports['gateway']}"
        request = CompletionRequest(
            url, self.files.name, BenchPrompt(list(prompt), len(prompt)), self.served.output_tokens
        )
        outcome = await complete(self._session, request)
        if outcome.error is not None:
            raise RuntimeError(f"the suite did not answer: {outcome.error}")
        return outcome

    def _prompt(self, length: int) -> list[int]:
        self._num_asked += 1
        rng = random.Random(self._num_asked)
        return [rng.randrange(self.files.config().vocab_size) for _ in range(length)]

    def _row(self, way: str, length: int, outcomes: Sequence[RequestOutcome]) -> Row:
        ttft = Spread.of([outcome.ttft_s * 1000 for outcome in outcomes])
        itls = [itl * 1000 for outcome in outcomes for itl in outcome.itls_s]
        return {
            "model": self.served.name,
            "way": way,
            "prompt_tokens": length,
            "cached_tokens": min(outcome.cached_tokens for outcome in outcomes),
            **ttft.cells("ttft_ms", 1),
            "itl_p50_ms": round(statistics.median(itls), 2),
            "itl_p99_ms": round(statistics.quantiles(itls, n=100)[98], 2),
        }
