"""A running batch of 8 while a long prompt's KV trickles in, layer by layer: what do the others notice?"""

import asyncio
import statistics

from benchmarks.engine.batch import RunningBatch, running_batch
from benchmarks.engine.node import DecodeNode, LoopLag, open_decode, percentile
from benchmarks.engine.pool import feed, feeding_pool
from benchmarks.harness import Report, Row, at_most
from benchmarks.peers.protocol import Prompts
from benchmarks.pool_process import PoolProcess
from shared.config import load
from shared.engine.settings import EngineSettings
from shared.kv.hashing import num_prefix_blocks

BATCH, CONTEXT, PROMPT_TOKENS = 8, 512, 4000
TRICKLE_S = 4.0
"""A prefill of 1,000 tokens/s."""
LIMIT, LAG_LIMIT_S = 1.05, 0.025
SETTLE_STEPS = 4


async def measure(quick: bool) -> Report:
    """Alternate: some seconds alone, some with a prompt coming in, all within one run of the batch."""
    num_tokens, seconds, rounds = (1000, 1.0, 1) if quick else (PROMPT_TOKENS, TRICKLE_S, 5)
    settings = load(EngineSettings)
    prompts = Prompts(2)
    alone: list[float] = []
    beside: list[float] = []
    first_token_s: list[float] = []
    async with feeding_pool(settings.model, settings.dtype) as pool, open_decode(pool.address) as node:
        steps = int((2 * rounds + 1) * seconds / 0.005)  # more than there will be: a step takes longer than 5 ms
        steps = min(steps, node.model.max_model_len - CONTEXT - 128)
        async with running_batch(node, prompts.several(BATCH, CONTEXT), steps) as batch, LoopLag() as lag:
            for _ in range(rounds):
                alone += await _alone(batch, seconds)
                first_token_s.append(await _trickle(node, pool, prompts.draw(num_tokens), seconds, batch, beside))
            alone += await _alone(batch, seconds)
        model = node.model.files.name
    row: Row = {
        "model": model,
        "prompt_tokens": num_tokens,
        "trickle_s": seconds,
        "first_token_s": round(statistics.median(first_token_s), 3),
        "alone_ms": _ms(statistics.fmean(alone)),
        "alone_p99_ms": _ms(percentile(alone, 99)),
        "beside_ms": _ms(statistics.fmean(beside)),
        "beside_p99_ms": _ms(percentile(beside, 99)),
        "loop_lag_p99_ms": _ms(lag.p99_s),
    }
    slower = statistics.fmean(beside) / statistics.fmean(alone)
    return Report(
        [row],
        [
            at_most(f"{model}: inter-token latency of {BATCH} while a prompt trickles in, times alone", slower, LIMIT),
            at_most(f"{model}: event-loop lag p99 of a saturated decode worker", lag.p99_s, LAG_LIMIT_S, "s"),
        ],
    )


async def _alone(batch: RunningBatch, seconds: float) -> list[float]:
    await batch.steps(SETTLE_STEPS)
    mark = batch.mark()
    await asyncio.sleep(seconds)
    return batch.since(mark)


async def _trickle(
    node: DecodeNode, pool: PoolProcess, prompt: list[int], seconds: float, batch: RunningBatch, beside: list[float]
) -> float:
    """Let one prompt come in; return seconds to its first token. Steps in the meantime go to `beside`."""
    num_blocks = num_prefix_blocks(len(prompt), node.model.layout.block_tokens)
    keys = node.model.keys(prompt, "")[:num_blocks]
    mark = batch.mark()
    async with asyncio.TaskGroup() as tasks:
        fed = tasks.create_task(feed(pool, keys, seconds))
        answer = await node.generate(prompt, 1, num_blocks)
        beside += batch.since(mark)
        await fed
    expected = len(prompt) - num_blocks * node.model.layout.block_tokens
    if answer.computed_prompt_tokens != expected:
        raise RuntimeError(f"decode computed {answer.computed_prompt_tokens} prompt tokens instead of {expected}")
    return answer.first_token_s


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
