"""What waits for a reader: all at once, more of it where the event loop is behind."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from services.gateway.metrics import GatewayMetrics
from services.gateway.request import choices
from services.gateway.request.attempt import TokenEvent
from services.gateway.request.choices import HOLD_S, LATE_S, Choices, Inbox
from services.gateway.request.generation import GenerationRequest, Prepared
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.text import TextRules
from services.gateway.request.usage import PromptUsage
from services.gateway.timeline.record import ChoiceNote
from shared.deadline import Deadline
from shared.metrics import Metrics
from shared.sampling.params import SamplingParams
from tests.support.gateway import byte_tokenizer

NUM_TOKENS = 8
TEXT = b"abcdefgh"


async def texts(tmp_path: Path, behind_s: float, between_s: float) -> list[str]:
    """Return the texts of one choice's deltas, whose tokens come `between_s` apart to a loop that is so far behind."""

    async def generate(
        _request: GenerationRequest, _usage: PromptUsage, _deadline: Deadline, note: ChoiceNote
    ) -> AsyncGenerator[TokenEvent, None]:
        note.passed(has_waited=False)
        for number, token_id in enumerate(tokenizer.encode(TEXT.decode())):
            await asyncio.sleep(between_s)
            asyncio.get_running_loop().call_soon(time.sleep, behind_s)
            yield TokenEvent((token_id,), "length" if number == NUM_TOKENS - 1 else None)

    tokenizer = byte_tokenizer(tmp_path)
    pipeline = create_autospec(Pipeline, instance=True)
    pipeline.generate = generate
    prepared = Prepared((GenerationRequest((1,), (), SamplingParams(NUM_TOKENS), ""),), TextRules(), 1)
    metrics = GatewayMetrics(Metrics(), "model")
    async with Choices(pipeline, tokenizer, metrics, prepared, Deadline.after(60)) as running:
        return [delta.text async for deltas in running for delta in deltas]


async def test_each_token_goes_out_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "LATE_S", 60.0)  # whatever else this machine does meanwhile
    assert await texts(tmp_path, behind_s=0, between_s=0.001) == [chr(byte) for byte in TEXT]


async def test_a_loop_that_is_behind_sends_several_tokens_at_once(tmp_path: Path) -> None:
    first, *inner, last = await texts(tmp_path, behind_s=2 * LATE_S, between_s=HOLD_S / 10)
    assert first == "a", "the first token waits for no other"
    assert [*inner, last] != [chr(byte) for byte in TEXT[1:]]
    assert "".join([first, *inner, last]) == TEXT.decode()


async def test_the_reader_takes_all_that_came() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    inbox.put(2)
    assert await inbox.take() == [1, 2]
    assert inbox.taken() == []
    assert inbox.late_s == 0


async def test_a_reader_whose_turn_comes_late_knows_it() -> None:
    inbox: Inbox[int] = Inbox()
    reading = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.put(1)
    time.sleep(2 * LATE_S)  # noqa: ASYNC251 - the loop is to be behind
    assert await reading == [1]
    assert inbox.late_s >= 2 * LATE_S
    inbox.put(2)
    assert await inbox.take() == [2]
    assert inbox.late_s == 0, "what was there already kept nobody waiting"
