"""A prefill worker behind gRPC that streams to a pool in another process: how much of the sending shows?"""

import asyncio
import statistics
import time
from dataclasses import dataclass

from benchmarks.engine.node import LoopLag, PrefillNode, open_prefill
from benchmarks.engine.pool import feeding_pool
from benchmarks.harness import Report, Row, Spread, at_most
from benchmarks.peers.protocol import Prompts
from shared.config import load
from shared.engine.settings import EngineSettings
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import rpc_errors

LENGTHS, REPETITIONS = (2048, 8000), 5
QUICK_LENGTHS, QUICK_REPETITIONS = (1024,), 2
LIMIT, LAG_LIMIT_S = 0.05, 0.025
TIMEOUT_S = 600.0
EXPOSED = "prfaas:prefill_emission_exposed_seconds_total"


@dataclass(frozen=True)
class Emission:
    """One prompt: seconds until the pool had all of it, and those of them in which nothing was computed any more."""

    seconds: float
    exposed_s: float


async def measure(quick: bool) -> Report:
    lengths, repetitions = (QUICK_LENGTHS, QUICK_REPETITIONS) if quick else (LENGTHS, REPETITIONS)
    settings = load(EngineSettings)
    prompts, report = Prompts(3), Report()
    async with feeding_pool(settings.model, settings.dtype) as pool, open_prefill(pool.address) as node:
        model = node.host.model.files.name
        await prefill(node, prompts.draw(lengths[0]))  # warms up
        async with LoopLag() as lag:
            for length in lengths:
                found = [await prefill(node, prompts.draw(length)) for _ in range(repetitions)]
                share = statistics.median(one.exposed_s / one.seconds for one in found)
                row: Row = {
                    "model": model,
                    "prompt_tokens": length,
                    **Spread.of([length / one.seconds for one in found]).cells("tokens_per_s", 1),
                    "exposed_ms": round(statistics.median(one.exposed_s for one in found) * 1000, 3),
                    "exposed_share": round(share, 4),
                }
                report.rows.append(row)
                report.checks.append(at_most(f"{model}, {length} tokens: share of emission not hidden", share, LIMIT))
    report.rows.append({"model": model, "prefill_loop_lag_p99_ms": round(lag.p99_s * 1000, 3)})
    report.checks.append(
        at_most(f"{model}: event-loop lag p99 of a saturated prefill worker", lag.p99_s, LAG_LIMIT_S, "s")
    )
    return report


async def prefill(node: PrefillNode, prompt: list[int]) -> Emission:
    """Prefill all full blocks of a prompt, as the gateway would ask for it."""
    model, registry = node.host.model, node.host.metrics.registry
    before = registry.get_sample_value(EXPOSED) or 0.0
    request = pb.PrefillRequest(
        token_ids=[*prompt, prompt[0]],  # one more than the blocks: the last token is always decode's
        num_blocks=len(prompt) // model.layout.block_tokens,
        fingerprint=model.files.fingerprint,
        layout_hash=model.layout.hash,
    )
    started = time.perf_counter()
    with rpc_errors("prefill"):
        async for _ in PrefillStub(node.channels.get(node.address)).Prefill(request, timeout=TIMEOUT_S):
            pass
    seconds = time.perf_counter() - started
    await asyncio.sleep(0)
    return Emission(seconds, (registry.get_sample_value(EXPOSED) or 0.0) - before)
