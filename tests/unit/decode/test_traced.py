"""The phases of a request on decode, from the times that it has kept."""

import time
from dataclasses import replace

import pytest

from services.decode.request import Generation, Request
from services.decode.scheduler import Rank
from services.decode.traced import trace_phases
from shared.deadline import Deadline
from shared.engine.urgency import Urgency
from shared.ids import BlockKey, RequestId
from shared.kv.codec import Codec
from shared.sampling.params import SamplingParams
from shared.telemetry.spans import current_span
from shared.telemetry.tracing import begun
from tests.support.traces import kept_spans, seconds


def a_request(began_s_ago: float) -> Request:
    generation = Generation(
        request_id=RequestId("r"),
        token_ids=[1, 2, 3],
        sampling=SamplingParams(8),
        keys=[],
        root=BlockKey(b""),
        num_blocks=0,
        sources=(),
        wait_s=0.0,
        codec=Codec.RAW,
        deadline=Deadline.after(60.0),
        began_at=time.monotonic() - began_s_ago,
        span=current_span(),
    )
    return Request(generation, Rank(0, 0), Urgency(0.0, 60.0, 0), 64)


def test_a_finished_request_has_all_phases() -> None:
    with kept_spans() as kept, begun("call", [], {}):
        request = a_request(10.0)
        began_at = request.generation.began_at
        request.admitted_at, request.first_token_at = began_at + 1.0, began_at + 6.0
        request.gate_opened_at_s = time.time() - 10.0 + 4.0
        request.tokens += [4, 5]
        request.num_computed = 3
        trace_phases(request)
    took = {name: seconds(kept.one(name)) for name in kept.names if name != "call"}
    assert took == pytest.approx({"wait for pages": 1.0, "wait for blocks": 3.0, "tail": 2.0, "generate": 4.0}, abs=0.2)
    assert (kept.one("generate").attributes or {})["prfaas.num_tokens"] == 2
    assert (kept.one("tail").attributes or {})["prfaas.computed_tokens"] == 3


def test_a_request_that_ends_early_shows_where_it_waited() -> None:
    with kept_spans() as kept, begun("call", [], {}):
        trace_phases(a_request(10.0))
        request = a_request(10.0)
        request.admitted_at = request.generation.began_at + 1.0
        trace_phases(request)
    assert sorted(kept.names) == ["call", "wait for blocks", "wait for pages", "wait for pages"]
    assert seconds(kept.one("wait for blocks")) == pytest.approx(9.0, abs=0.2)


def test_loops_are_bound_to_the_request_and_its_span() -> None:
    with kept_spans():
        with begun("call", [], {}) as span:
            generation = replace(a_request(0.0).generation)
        assert current_span() is not span
        with generation.bound():
            assert current_span() is span
