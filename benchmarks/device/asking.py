"""Asks a running suite for completions, and brings prompts to the pools that a measurement wants them in."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.device.serving import DeviceModel
from benchmarks.device.shapes import BLOCK_TOKENS
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import new_session
from shared.deadline import Deadline
from shared.ids import Datacenter
from shared.kv.entries import BlockEntries, Source
from shared.kv.hashing import chain_keys, num_prefix_blocks, root_key
from shared.pool.client import PoolClient
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import Channels, rpc_errors

TIMEOUT_S = 120.0
NEWS_S = 0.3
"""Until the gateway has heard what a pool holds."""
ARRIVING_OUTPUT_TOKENS = 4


@dataclass(frozen=True)
class BatchRun:
    """A batch that ran beside arriving prompts, or beside nothing."""

    itls_s: Sequence[float]
    num_arrived: int


class SuiteAsker:
    """Asks one running suite; a prompt comes anew each time that one is drawn."""

    def __init__(
        self, model: DeviceModel, ports: dict[str, int], session: aiohttp.ClientSession, channels: Channels
    ) -> None:
        self.shape = model.shape
        self._files = model.files
        self._vocab_size = model.files.config().vocab_size
        self._layout = model.files.config().kv_layout(BLOCK_TOKENS, "bfloat16")
        self._ports = ports
        self._session = session
        self._channels = channels
        self._rng = random.Random(model.shape.name)

    def prompt(self, length: int) -> list[int]:
        return self._rng.choices(range(self._vocab_size), k=length)

    async def complete(
        self, prompt: Sequence[int], output_tokens: int | None = None, gateway: str = "gateway"
    ) -> RequestOutcome:
        """Return a gateway's answer; `gateway` names its port. Raises `RuntimeError` when it is none."""
        url = f"http://127.0.0.1:{self._ports[gateway]}"
        num_tokens = output_tokens or self.shape.output_tokens
        request = CompletionRequest(url, self._files.name, BenchPrompt(list(prompt), len(prompt)), num_tokens)
        outcome = await complete(self._session, request)
        if outcome.error is not None:
            raise RuntimeError(f"the suite did not answer: {outcome.error}")
        return outcome

    async def prefill(self, prompt: Sequence[int]) -> None:
        """Have the prefill worker make the prompt's blocks, until its pool has stored the last entry."""
        request = pb.PrefillRequest(
            token_ids=prompt,
            num_blocks=num_prefix_blocks(len(prompt), BLOCK_TOKENS),
            fingerprint=self._files.fingerprint,
            layout_hash=self._layout.hash,
        )
        with rpc_errors("prefill"):
            stub = PrefillStub(self._channels.get(f"127.0.0.1:{self._ports['prefill']}"))
            async for _ in stub.Prefill(request, timeout=TIMEOUT_S):
                pass

    async def pull(self, prompt: Sequence[int]) -> None:
        """Have decode's pool pull the prompt's blocks from the other one, which holds them; decode knows nothing of it.

        Raises `RuntimeError` when it does not hold them then.
        """
        keys = chain_keys(root_key(self._files.fingerprint, self._layout.hash), prompt, BLOCK_TOKENS)
        keys = keys[: num_prefix_blocks(len(prompt), BLOCK_TOKENS)]
        blocks = [BlockEntries(key, self._layout.needed_layers(i, len(keys))) for i, key in enumerate(keys)]
        source = Source(0, len(keys), Datacenter("east"), (f"127.0.0.1:{self._ports['pool_east']}",))
        pool = PoolClient(self._channels, f"127.0.0.1:{self._ports['pool_west']}")
        deadline = Deadline.after(TIMEOUT_S)
        async with aclosing(pool.fetch(self._layout, blocks, [source], 0.0, deadline)) as arrivals:
            async for _ in arrivals:
                pass
        held = await pool.lookup(keys, deadline)
        if any(block.layers & ~layers for block, layers in zip(blocks, held, strict=True)):
            raise RuntimeError("decode's pool lacks what was fetched there")

    async def run_batch(self, prompts: Sequence[Sequence[int]], arriving: Iterable[Sequence[int]]) -> BatchRun:
        """Ask `prompts` at once, all cached, and meanwhile `arriving` one after another, as many as there is time for.

        Latencies are those between tokens while all of the batch ran and, where there are any, prompts arrived.
        """
        num_arrived, ended_at = 0, float("inf")
        async with asyncio.TaskGroup() as group:
            batch = [group.create_task(self._token_times(prompt)) for prompt in prompts]
            for prompt in arriving:
                await self.complete(prompt, ARRIVING_OUTPUT_TOKENS)
                num_arrived, ended_at = num_arrived + 1, time.perf_counter()
                if any(task.done() for task in batch):
                    break
        return BatchRun(itls_together([task.result() for task in batch], ended_at), num_arrived)

    async def _token_times(self, prompt: Sequence[int]) -> list[float]:
        started = time.perf_counter()
        outcome = await self.complete(prompt, self.shape.batch_output_tokens)
        return [started + at_s for at_s in outcome.token_times_s]


def itls_together(times: Sequence[Sequence[float]], until: float) -> list[float]:
    """Return the intervals between tokens while all sequences ran, but none that ends after `until`.

    Raises `RuntimeError` when there is no such interval.
    """
    since, until = max(own[0] for own in times), min(until, *(own[-1] for own in times))
    found = [b - a for own in times for a, b in pairwise(own) if since <= a and b <= until]
    if not found:
        raise RuntimeError("the sequences of a batch did not run at the same time")
    return found


@asynccontextmanager
async def asking(model: DeviceModel, ports: dict[str, int]) -> AsyncIterator[SuiteAsker]:
    """Ask the suite that serves the model at these ports."""
    async with new_session() as session, Channels() as channels:
        yield SuiteAsker(model, ports, session, channels)
