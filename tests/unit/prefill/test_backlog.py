"""What a prefill worker still has to compute, by prompts that come, get on and leave."""

import pytest

from services.prefill.backlog import Backlog
from shared.step_profile import num_pairs
from tests.support.parts import step_costs


def backlog() -> Backlog:
    return Backlog(step_costs(3), chunk_tokens=512, clock=lambda: 0.0)


async def test_prompts_count_from_what_is_known_of_them_to_their_end() -> None:
    waiting = backlog()
    assert waiting.queued() == (0, 0.0)
    async with waiting.entered(0, 1024) as first, waiting.entered(512, 640):
        assert waiting.queued().num_tokens == 1152
        first.first = 1024
        assert waiting.queued().num_tokens == 128
    assert waiting.queued() == (0, 0.0)


async def test_prompts_share_steps() -> None:
    waiting = backlog()
    async with waiting.entered(0, 256), waiting.entered(1000, 1256):
        pairs = num_pairs(0, 256) + num_pairs(1000, 1256)
        queued = waiting.queued()
        assert queued.num_tokens == 512
        assert queued.seconds == pytest.approx(1e-3 + 512e-5 + pairs * 1e-8)


async def test_a_prompt_that_fails_leaves() -> None:
    waiting = backlog()
    with pytest.raises(RuntimeError):
        async with waiting.entered(0, 64):
            raise RuntimeError
    assert waiting.queued().num_tokens == 0
    assert waiting.arrivals_per_s > 0
