"""Rows with constraints beside rows without: masks, ends, failures, and steps that are repeated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from services.decode.request import Request
from services.decode.scheduler import Rank
from services.decode.steps.runner import row_of
from shared.engine.urgency import Urgency
from shared.errors import BadRequest
from shared.model.sampler.choosing import Choice, TokenChooser
from shared.model.sampler.sampling import Sampled, takes_best
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import Constraint
from shared.sampling.params import SamplingParams
from tests.support.parts import generation
from tests.support.structured import EOS, VOCAB_SIZE, grammars_of, regex, save_tokenizer
from tests.support.tiny import tiny_model


class Desk:
    """Requests of the tiny model `bytes`, and logits that favour the texts that a test names."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Tokenizer = save_tokenizer(directory)
        self.grammars = grammars_of(directory)
        self.model = tiny_model("bytes", num_pages=4, directory=directory)
        self.chooser = TokenChooser()

    async def request(self, constraint: Constraint | None, answered: str = "", **sampling: Any) -> Request:
        wanted = {"max_tokens": 20, "temperature": 0, "stop_token_ids": (EOS,), **sampling}
        params = SamplingParams(constraint=constraint, **wanted)
        begun = self.tokenizer.encode(answered)
        guide = None if constraint is None else await self.grammars.guide(constraint, params.stop_token_ids, begun)
        asked = generation(self.model, [5, 6, *begun], sampling=params, guide=guide, num_generated_before=len(begun))
        return Request(asked, Rank(0, 0), Urgency(0, 0), 64)

    def logits(self, num_rows: int, *best: int) -> torch.Tensor:
        logits = torch.zeros(num_rows, VOCAB_SIZE)
        for place, token in enumerate(best):
            logits[:, token] = 10 - place
        return logits

    def choose(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[Choice]:
        return self.chooser.choose(logits, [row_of(request) for request in requests])

    def id_of(self, text: str) -> int:
        (token,) = self.tokenizer.encode(text)
        return token


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_rows_without_a_constraint_are_as_before(desk: Desk) -> None:
    free, bound = await desk.request(None), await desk.request(regex("a+"))
    a, z = desk.id_of("a"), desk.id_of("z")
    found = desk.choose(desk.logits(3, z, a), [free, bound, free])
    assert found == [Sampled(z, None), Sampled(a, None), Sampled(z, None)]
    assert takes_best(row_of(free))
    assert not takes_best(row_of(bound)), "the device must not go on by itself"


async def test_an_answer_that_nothing_can_follow_completes(desk: Desk) -> None:
    done, open_ended = await desk.request(regex("ab"), "a"), await desk.request(regex("ab+"), "a")
    found = desk.choose(desk.logits(2, desk.id_of("b")), [done, open_ended])
    assert [result.completes for result in found if isinstance(result, Sampled)] == [True, False]


async def test_an_end_waits_for_the_least_number_of_tokens(desk: Desk) -> None:
    request = await desk.request(regex("a+"), "a", min_tokens=2)
    a = desk.id_of("a")
    for expected in (a, a, EOS):
        (result,) = desk.choose(desk.logits(1, EOS, a), [request])
        assert isinstance(result, Sampled)
        assert result.token == expected
        request.tokens.append(result.token)


async def test_a_whole_answer_ends_before_its_least_number_of_tokens(desk: Desk) -> None:
    request = await desk.request(regex("a?"), "a", min_tokens=5)
    (result,) = desk.choose(desk.logits(1, desk.id_of("a")), [request])
    assert result == Sampled(EOS, None, True)


async def test_an_ignored_end_ends_only_what_cannot_go_on(desk: Desk) -> None:
    a = desk.id_of("a")
    request = await desk.request(regex("a{1,2}"), "a", stop_token_ids=())
    (result,) = desk.choose(desk.logits(1, EOS, a), [request])
    assert result == Sampled(a, None, True)


async def test_who_cannot_go_on_fails_alone(desk: Desk) -> None:
    stuck, fine = await desk.request(regex("ab")), await desk.request(regex("a+"))
    assert stuck.generation.guide is not None
    with pytest.raises(BadRequest):
        stuck.generation.guide.take([desk.id_of("z")])
    a = desk.id_of("a")
    first, second, third = desk.choose(desk.logits(3, a), [stuck, fine, await desk.request(None)])
    assert isinstance(first, BadRequest)
    assert (second, third) == (Sampled(a, None), Sampled(a, None))


async def test_a_step_that_is_repeated_chooses_the_same(desk: Desk) -> None:
    request = await desk.request(regex("abc"), "a")
    b = desk.id_of("b")
    for _ in range(3):  # its token was never handed out
        assert desk.choose(desk.logits(1, b), [request]) == [Sampled(b, None)]
    request.tokens.append(b)
    (result,) = desk.choose(desk.logits(1, b), [request])
    assert result == Sampled(desk.id_of("c"), None, True)
