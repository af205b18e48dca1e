"""The gateway set to store and forward, which benchmarks compare streaming with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.errors import Internal
from tests.contract.gateway_harness import Suite, eventually, prefills, raises, running_suite

PROMPT = "a prompt of several blocks, which goes to the prefill worker of the other datacenter"


@pytest.fixture
async def storing(tmp_path: Path) -> AsyncIterator[Suite]:
    async with running_suite(tmp_path, hand_off="stored") as suite:
        yield suite


async def test_decode_begins_when_prefill_has_ended(storing: Suite) -> None:
    storing.prefill.behave = prefills(80, delay_s=0.2)
    await storing.complete(prompt=PROMPT, max_tokens=2)
    assert storing.decode.calls[0].started_at - storing.prefill.calls[0].started_at >= 0.2
    assert storing.prefill.calls[0].over.is_set()


async def test_decode_learns_of_a_prefill_that_failed_before_it_began(storing: Suite) -> None:
    storing.prefill.behave = raises(Internal("out of memory"))
    answer = await storing.complete(prompt=PROMPT, max_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2
    await eventually(lambda: storing.decode.calls[0].updates)
    assert storing.decode.calls[0].updates[0].prefill_failed
