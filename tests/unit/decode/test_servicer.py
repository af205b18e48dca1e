"""What the decode servicer does with a request before the engine sees it."""

import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import pytest

from services.decode.engine import DecodeEngine
from services.decode.request import FinishReason, Generation, NewTokens
from services.decode.servicer import MAX_TOLD_AT_ONCE, DecodeServicer, messages_of
from shared.engine.thread import LONG_PROMPT_TOKENS
from shared.errors import Overloaded
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.proto import prfaas_pb2 as pb
from shared.rpc.sampling import prompt_logprobs_from_message
from shared.sampling.logprobs import TokenLogprobs
from tests.support.hashing import EndlessCall, hashing_model


class _FullEngine:
    """Remembers what it was given, and refuses it."""

    def __init__(self) -> None:
        self.submitted: list[Generation] = []

    def submit(self, generation: Generation) -> None:
        self.submitted.append(generation)
        raise Overloaded("full")


@pytest.mark.parametrize("num_tokens", [LONG_PROMPT_TOKENS - 1, LONG_PROMPT_TOKENS])
async def test_a_long_prompt_is_hashed_beside_the_loop(num_tokens: int) -> None:
    model = hashing_model()
    engine = _FullEngine()

    async def controls() -> AsyncIterator[pb.Control]:
        yield pb.Control(
            start=pb.GenerateRequest(
                token_ids=[1] * num_tokens,
                sampling=pb.Sampling(max_tokens=1, top_p=1),
                fingerprint=model.files.fingerprint,
                layout_hash=model.layout.hash,
            )
        )

    grammars = Grammars(partial(GrammarVocabulary.load, model.files.path, model.config.vocab_size))
    servicer = DecodeServicer(model, cast(DecodeEngine, engine), grammars)
    answers: Any = servicer.Generate(controls(), cast(Any, EndlessCall()))
    with pytest.raises(Overloaded):
        await anext(answers)
    assert engine.submitted[0].keys == model.keys([1] * num_tokens, "")
    assert (model.threads[0] is threading.current_thread()) == (num_tokens < LONG_PROMPT_TOKENS)


@pytest.mark.parametrize("num_told", [0, 1, MAX_TOLD_AT_ONCE, MAX_TOLD_AT_ONCE + 1, 3 * MAX_TOLD_AT_ONCE])
def test_what_is_told_of_a_long_prompt_travels_in_bounded_messages(num_told: int) -> None:
    told = tuple(TokenLogprobs(-float(i), ((i, -0.5),), i + 1) for i in range(num_told))
    messages = list(messages_of(NewTokens((7,), FinishReason.LENGTH, 5, prompt_logprobs=told)))
    assert [one for message in messages for one in prompt_logprobs_from_message(message)] == list(told)
    assert max(len(message.prompt_logprobs) for message in messages) <= MAX_TOLD_AT_ONCE
    assert len(messages) == max(1, -(-num_told // MAX_TOLD_AT_ONCE))
    assert [list(message.ids) for message in messages] == [[]] * (len(messages) - 1) + [[7]]
    assert [message.computed_prompt_tokens for message in messages] == [0] * (len(messages) - 1) + [5]
