"""What the decode servicer does with a request before the engine sees it."""

import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import pytest

from services.decode.engine import DecodeEngine
from services.decode.request import Generation
from services.decode.servicer import DecodeServicer
from shared.engine.thread import LONG_PROMPT_TOKENS
from shared.errors import Overloaded
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.proto import prfaas_pb2 as pb
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
