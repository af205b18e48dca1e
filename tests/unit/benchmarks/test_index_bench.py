"""The index benchmark measures what it says: the pairs are there, the prompts are found, the targets have names."""

import numpy as np

from benchmarks.harness import Report
from benchmarks.index import _check, match_row
from benchmarks.placement.filling import HOLDERS, NUM_HOLDERS, PROMPT_BLOCKS, FilledPrompt, Index, fill
from benchmarks.placement.gateway import Gateway
from shared.bus.events import unpack_keys
from shared.rpc.client import Channels


async def test_prompts_lie_where_they_should() -> None:
    rng = np.random.default_rng(0)
    prompts = [FilledPrompt(rng.bytes(32 * PROMPT_BLOCKS), kind, 3) for kind in ("one pool", "all pools")]
    async with Channels() as channels:
        index = Index(Gateway(channels), 2, rng)
        for name in HOLDERS:
            index.gateway.meet(name)
        took = await fill(index, prompts, 8 * PROMPT_BLOCKS)
        assert sum(index.gateway.index.num_blocks().values()) == index.num_pairs >= 8 * PROMPT_BLOCKS
        for prompt, num_holders in zip(prompts, (1, NUM_HOLDERS), strict=True):
            held = index.gateway.index.held(unpack_keys(prompt.keys), 0.0)
            counts = [np.count_nonzero(one.groups) for one in held.values()]
            assert sum(counts) == 2 * PROMPT_BLOCKS
            assert max(counts) >= PROMPT_BLOCKS // num_holders
        report = Report()
        _check(report, match_row(2, "one pool", took))
        assert [check.name for check in report.checks] == ["match p99, each block on 2, prompt on one pool"]
