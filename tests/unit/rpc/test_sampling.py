"""Sampling parameters and log-probabilities across the wire."""

from dataclasses import fields
from typing import Any

import pytest

from shared.errors import BadRequest, Internal
from shared.proto import prfaas_pb2 as pb
from shared.rpc.sampling import (
    logprobs_from_message,
    logprobs_to_messages,
    prompt_logprobs_from_message,
    sampling_from_message,
    sampling_to_message,
    scoring_from_message,
    scoring_to_message,
)
from shared.sampling.constraint import Constraint, ConstraintKind
from shared.sampling.logprobs import PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams

FULL = SamplingParams(
    max_tokens=9,
    temperature=0.1,
    top_p=0.7,
    top_k=5,
    min_p=0.3,
    presence_penalty=0.1,
    frequency_penalty=-0.2,
    repetition_penalty=1.1,
    logit_bias=((3, 0.1), (7, -100.0)),
    seed=2**64 - 1,
    min_tokens=2,
    stop_token_ids=(4, 4, 1),
    num_logprobs=0,
    constraint=Constraint(ConstraintKind.CHOICE, '["a","b"]'),
)


def test_parameters_survive_to_the_bit() -> None:
    plain = SamplingParams(max_tokens=9)
    assert all(getattr(FULL, f.name) != getattr(plain, f.name) for f in fields(FULL) if f.name != "max_tokens")
    for params in (FULL, plain):
        wire = sampling_to_message(params).SerializeToString()
        assert sampling_from_message(pb.Sampling.FromString(wire)) == params


@pytest.mark.parametrize("kind", ConstraintKind)
def test_every_kind_of_constraint_travels(kind: ConstraintKind) -> None:
    params = SamplingParams(max_tokens=9, constraint=Constraint(kind, "ä\x00"))
    wire = sampling_to_message(params).SerializeToString()
    assert sampling_from_message(pb.Sampling.FromString(wire)) == params


def test_what_a_peer_may_not_send() -> None:
    with pytest.raises(BadRequest):
        sampling_from_message(pb.Sampling(max_tokens=5))  # top_p 0
    for kind in (pb.CONSTRAINT_KIND_UNSPECIFIED, 99):
        unknown: Any = kind
        with pytest.raises(BadRequest, match="not known"):
            sampling_from_message(pb.Sampling(max_tokens=5, top_p=1, constraint=pb.Constraint(kind=unknown)))
    with pytest.raises(Internal):
        logprobs_from_message(pb.Tokens(ids=[1, 2], logprobs=[pb.TokenLogprobs()]))
    with pytest.raises(Internal):
        logprobs_from_message(pb.Tokens(ids=[1], logprobs=[pb.TokenLogprobs(top_ids=[1])]))


def test_logprobs_there_and_back() -> None:
    logprobs = (TokenLogprobs(-0.5, ((3, -0.5), (4, -1.25))), TokenLogprobs(-2.0, ()))
    assert logprobs_from_message(pb.Tokens(ids=[3, 9], logprobs=logprobs_to_messages(logprobs))) == logprobs
    assert logprobs_from_message(pb.Tokens(ids=[3])) == ()


def test_what_is_told_of_a_prompt_survives() -> None:
    told = [TokenLogprobs(-0.5, ((7, -0.5), (9, -1.25)), 1), TokenLogprobs(-4.0, (), 1000)]
    message = pb.Tokens.FromString(pb.Tokens(prompt_logprobs=logprobs_to_messages(told)).SerializeToString())
    assert prompt_logprobs_from_message(message) == tuple(told)
    assert logprobs_from_message(message) == ()
    message.prompt_logprobs[0].top_ids.append(1)
    with pytest.raises(Internal, match="parallel"):
        prompt_logprobs_from_message(message)


@pytest.mark.parametrize("first", [1, 7])
def test_scoring_survives(first: int) -> None:
    asked = pb.GenerateRequest(token_ids=range(9), num_generated=2, scoring=scoring_to_message(PromptScoring(first, 3)))
    assert scoring_from_message(asked) == PromptScoring(first, 3)
    assert scoring_from_message(pb.GenerateRequest(token_ids=[1], scoring=scoring_to_message(None))) is None


@pytest.mark.parametrize(("first", "num_top"), [(0, 0), (8, 0), (1, 21)])
def test_scoring_of_what_is_not_the_prompts_is_refused(first: int, num_top: int) -> None:
    scoring = pb.PromptScoring(first=first, num_top=num_top)
    with pytest.raises(BadRequest, match="scoring"):
        scoring_from_message(pb.GenerateRequest(token_ids=range(9), num_generated=2, scoring=scoring))
