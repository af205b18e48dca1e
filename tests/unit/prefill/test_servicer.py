"""What the prefill servicer does with a request before a worker sees it."""

import threading
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from services.prefill.servicer import PrefillServicer
from services.prefill.worker import PrefillWorker, Progress, Prompt
from shared.deadline import Deadline
from shared.engine.thread import LONG_PROMPT_TOKENS
from shared.proto import prfaas_pb2 as pb
from tests.support.hashing import EndlessCall, hashing_model


class _Worker:
    """Takes prompts and is done."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    async def prefill(self, prompt: Prompt, _deadline: Deadline) -> AsyncGenerator[Progress, None]:
        self.prompts.append(prompt)
        yield Progress(len(prompt.keys), 0, True)


@pytest.mark.parametrize("num_tokens", [LONG_PROMPT_TOKENS - 1, LONG_PROMPT_TOKENS])
async def test_a_long_prompt_is_hashed_beside_the_loop(num_tokens: int) -> None:
    model = hashing_model()
    worker = _Worker()
    request = pb.PrefillRequest(
        token_ids=[1] * num_tokens,
        num_blocks=2,
        fingerprint=model.files.fingerprint,
        layout_hash=model.layout.hash,
    )
    servicer = PrefillServicer(model, cast(PrefillWorker, worker))
    steps: Any = servicer.Prefill(request, cast(Any, EndlessCall()))
    assert [step.finished async for step in steps] == [True]
    assert worker.prompts[0].keys == model.keys([1] * num_tokens, "")[:2]
    assert (model.threads[0] is threading.current_thread()) == (num_tokens < LONG_PROMPT_TOKENS)
