"""Timelines as JSON: every time in seconds since the request came, an engine's own times placed where it was called."""

from collections.abc import Sequence
from typing import Any

from services.gateway.timeline.record import (
    AttemptNote,
    ChoiceNote,
    PlanNote,
    PrefillNote,
    RequestTimeline,
    SourceNote,
)
from shared.timings import DecodeTimings, LayerTimes, PrefillTimings

Json = dict[str, Any]


def summary_of(timeline: RequestTimeline, now: float) -> Json:
    """Return what a table of requests shows. `now`: of the monotonic clock."""
    choice = timeline.choices[0] if timeline.choices else None
    attempt = choice.attempts[-1] if choice is not None and choice.attempts else None
    first = None if choice is None else next((a.first_token_at for a in choice.attempts if a.first_token_at), None)
    num_tokens = sum(note.tokens.num_tokens for note in timeline.choices)
    plan = None if attempt is None else attempt.plan
    return {
        "number": timeline.number,
        "id": timeline.request_id,
        "kind": timeline.kind,
        "state": timeline.state,
        "status": timeline.status,
        "error": timeline.error,
        "started_at": round(timeline.began_at_unix_s, 3),
        "duration_s": _s((timeline.ended_at or now) - timeline.began_at),
        "ttft_s": _since(timeline, first),
        "forecast_ttft_s": None if plan is None else _s(plan.forecast_ttft_s),
        "prompt_tokens": timeline.num_prompt_tokens,
        "cached_tokens": timeline.num_cached_tokens,
        "completion_tokens": max(num_tokens, timeline.num_completion_tokens),
        "plan": None if plan is None else plan.kind,
        "prefill": None if plan is None or plan.prefill is None else plan.prefill._asdict(),
        "decode": None if plan is None else plan.decode._asdict(),
    }


def timeline_of(timeline: RequestTimeline, now: float) -> Json:
    """Return all that is known of a request, running or ended."""
    return {
        "object": "request.timeline",
        **summary_of(timeline, now),
        "trace_id": timeline.trace_id,
        "stream": timeline.is_streamed,
        "body_read_s": _since(timeline, timeline.body_read_at),
        "prepared_s": _since(timeline, timeline.prepared_at),
        "ended_s": _since(timeline, timeline.ended_at),
        "num_choices": timeline.num_choices,
        "choices": [_choice(timeline, choice) for choice in timeline.choices],
    }


def _choice(timeline: RequestTimeline, choice: ChoiceNote) -> Json:
    kept = choice.tokens.kept()
    return {
        "begun_s": _since(timeline, choice.begun_at),
        "planned_s": _since(timeline, choice.planned_at),
        "passed_s": _since(timeline, choice.passed_at),
        "has_waited": choice.has_waited,
        "attempts": [_attempt(timeline, attempt) for attempt in choice.attempts],
        "tokens": {
            "count": choice.tokens.num_tokens,
            "times_s": [_since(timeline, at) for at, _ in kept],
            "counts": [number for _, number in kept],
        },
        "finish_reason": choice.finish_reason,
    }


def _attempt(timeline: RequestTimeline, attempt: AttemptNote) -> Json:
    sent_s = _since(timeline, attempt.decode_sent_at)
    return {
        "plan": _plan(attempt.plan),
        "begun_s": _since(timeline, attempt.begun_at),
        "prefills": [_prefill(timeline, prefill) for prefill in attempt.prefills],
        "decode": {
            **attempt.plan.decode._asdict(),
            "sent_s": sent_s,
            "computed_prompt_tokens": attempt.computed_prompt_tokens,
            "worker_times": _decode_times(attempt.decode_timings, sent_s),
        },
        "rescued_s": _since(timeline, attempt.rescued_at),
        "first_token_s": _since(timeline, attempt.first_token_at),
        "ended_s": _since(timeline, attempt.ended_at),
        "error": attempt.error,
    }


def _plan(plan: PlanNote) -> Json:
    return {
        "kind": plan.kind,
        "home_dc": plan.home_dc,
        "decode": plan.decode._asdict(),
        "prefill": None if plan.prefill is None else plan.prefill._asdict(),
        "num_blocks": plan.num_blocks,
        "usable_blocks": plan.usable_blocks,
        "decode_sources": _sources(plan.decode_sources),
        "prefill_sources": _sources(plan.prefill_sources),
        "codec": plan.codec,
        "forecast_ttft_s": _s(plan.forecast_ttft_s),
        "forecast_time_per_output_token_s": _s(plan.forecast_time_per_output_token_s),
        "alone_s": None if plan.alone_s is None else _s(plan.alone_s),
        "candidates": [
            {
                "kind": way.kind,
                **way.site._asdict(),
                "cached_blocks": way.cached_blocks,
                "cost_s": _s(way.cost_s),
                "ttft_s": _s(way.ttft_s),
                "is_chosen": way.is_chosen,
            }
            for way in plan.ways
        ],
    }


def _sources(sources: Sequence[SourceNote]) -> list[Json]:
    return [source._asdict() for source in sources]


def _prefill(timeline: RequestTimeline, prefill: PrefillNote) -> Json:
    sent_s = _since(timeline, prefill.sent_at)
    return {
        **prefill.site._asdict(),
        "sent_s": sent_s,
        "known_s": _since(timeline, prefill.known_at),
        "ended_s": _since(timeline, prefill.ended_at),
        "reused_blocks": prefill.reused_blocks,
        "computed_tokens": prefill.computed_tokens,
        "worker_times": _prefill_times(prefill.timings, sent_s),
        "error": prefill.error,
    }


def _prefill_times(timings: PrefillTimings | None, sent_s: float | None) -> Json | None:
    if timings is None or sent_s is None:
        return None
    return {
        "turn_s": _s(sent_s + timings.turn_s),
        "reserved_s": _s(sent_s + timings.reserved_s),
        "ready_s": _s(sent_s + timings.ready_s),
        "computed_s": _s(sent_s + timings.computed_s),
        "stored_s": _s(sent_s + timings.stored_s),
        "num_entries_sent": timings.num_entries_sent,
        "layers_computed": _layers(timings.computed, sent_s),
        "layers_sent": _layers(timings.sent, sent_s),
        "is_launched": timings.is_launched,
    }


def _decode_times(timings: DecodeTimings | None, sent_s: float | None) -> Json | None:
    if timings is None or sent_s is None:
        return None
    return {
        "admitted_s": _s(sent_s + timings.admitted_s),
        "gate_opened_s": _s(sent_s + timings.gate_opened_s),
        "tail_computed_s": _s(sent_s + timings.computed_s),
        "computed_tokens": timings.computed_tokens,
        "fetched_bytes": timings.fetched_bytes,
        "layers_landed": _layers(timings.landed, sent_s),
    }


def _layers(times: LayerTimes, sent_s: float) -> list[list[float] | None]:
    """Return for each layer its first and its last time; None where there is none."""
    return [
        None if first < 0 else [_s(sent_s + first), _s(sent_s + last)]
        for first, last in zip(times.first_s, times.last_s, strict=True)
    ]


def _since(timeline: RequestTimeline, at: float | None) -> float | None:
    return None if at is None else _s(at - timeline.began_at)


def _s(seconds: float) -> float:
    return round(seconds, 6)
