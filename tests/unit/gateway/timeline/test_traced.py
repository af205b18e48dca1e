"""Timelines as spans: facts by convention, phases from the times that were kept, the end of what failed."""

import pytest

from services.gateway.timeline.record import AttemptNote, PrefillNote, RequestTimeline, WorkerSite
from services.gateway.timeline.timelines import Timelines
from services.gateway.timeline.traced import traced_attempt, traced_prefill
from shared.errors import WorkerLost
from shared.telemetry.spans import current_span
from shared.telemetry.tracing import begun
from tests.support.timelines import PLAN_NOTE
from tests.support.traces import kept_spans, seconds


def served(timeline: RequestTimeline) -> None:
    """Note a request that is served in ten seconds, whatever the time."""
    began_at = timeline.began_at
    timeline.body_read_at, timeline.prepared_at = began_at + 1.0, began_at + 2.0
    timeline.num_prompt_tokens, timeline.num_choices = 300, 1
    choice = timeline.choice()
    choice.begun_at, choice.planned_at, choice.passed_at = began_at + 2.0, began_at + 3.0, began_at + 5.0
    note = choice.carried_out(PLAN_NOTE)
    note.begun_at, note.decode_sent_at = began_at + 5.0, began_at + 5.5
    with traced_attempt(note):
        note.first_token(began_at + 7.0, 12, None)
        choice.tokens.add(began_at + 7.0, 1)
        choice.tokens.add(began_at + 9.0, 3)
    choice.finish_reason = "stop"
    timeline.used(4, 288)


def test_a_request_tells_its_phases_and_its_usage() -> None:
    with kept_spans() as kept, begun("POST", [], {}) as span, Timelines().follow("r", "chat") as timeline:
        assert timeline.trace_id == span.trace_id is not None
        served(timeline)
    assert sorted(kept.children("POST")) == ["attempt", "plan", "queue", "read body", "tokenise"]
    assert kept.children("attempt") == ["first token"]
    took = {name: seconds(kept.one(name)) for name in ("read body", "tokenise", "plan", "queue", "first token")}
    assert took == pytest.approx(
        {"read body": 1.0, "tokenise": 1.0, "plan": 1.0, "queue": 2.0, "first token": 1.5}, abs=1e-6
    )
    facts = dict(kept.one("POST").attributes or {})
    assert facts["gen_ai.operation.name"] == "chat"
    assert facts["gen_ai.usage.input_tokens"] == facts["gen_ai.usage.prompt_tokens"] == 300
    assert facts["gen_ai.usage.output_tokens"] == facts["gen_ai.usage.completion_tokens"] == 4
    assert facts["gen_ai.usage.cache_read.input_tokens"] == 288
    assert facts["gen_ai.response.finish_reasons"] == "stop"
    assert facts["gen_ai.latency.time_to_first_token"] == pytest.approx(7.0)
    assert facts["gen_ai.latency.time_in_queue"] == pytest.approx(2.0)
    assert facts["gen_ai.latency.time_in_model_decode"] == pytest.approx(2.0)
    decision = dict(kept.one("attempt").attributes or {})
    assert decision["prfaas.plan"] == "remote"
    assert decision["prfaas.prefill"] == "prefill-east"
    assert decision["prfaas.computed_prompt_tokens"] == 12


def test_a_stream_that_breaks_off_is_a_failure() -> None:
    with kept_spans() as kept, begun("POST", [], {}), Timelines().follow("r", "chat") as timeline:
        timeline.failed("worker_lost")
    assert (kept.one("POST").attributes or {})["error.type"] == "worker_lost"


def test_a_lost_worker_fails_its_call_and_its_attempt_alone() -> None:
    with kept_spans() as kept, begun("POST", [], {}):
        note = AttemptNote(PLAN_NOTE)
        with pytest.raises(WorkerLost), traced_attempt(note), traced_prefill(PrefillNote(WorkerSite("p", "east"))):
            raise WorkerLost("gone")
    assert kept.children("attempt") == ["prefill"]
    errors = {name: (kept.one(name).attributes or {}).get("error.type") for name in kept.names}
    assert errors == {"prefill": WorkerLost.code, "attempt": WorkerLost.code, "POST": None}


def test_without_a_trace_nothing_is_made() -> None:
    with Timelines().follow("r", "chat") as timeline:
        served(timeline)
        assert not current_span().is_recording
    assert timeline.trace_id is None
