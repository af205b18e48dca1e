"""Timelines as spans: phases that are over from the times that were kept, and the two calls that others continue."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.gateway.timeline.record import AttemptNote, ChoiceNote, PlanNote, PrefillNote, RequestTimeline
from shared.telemetry.spans import Attributes, TraceSpan, current_span, named, traced

# Names of the semantic conventions, and beside them those of vLLM, whose dashboards then fit.
_OPERATIONS = {"chat": "chat", "completion": "text_completion"}


def trace_request(timeline: RequestTimeline) -> None:
    """Put what has become of a request into the current span, and its phases beside its attempts."""
    span = current_span()
    if not span.is_recording:
        return
    span.set(_usage(timeline))
    if timeline.body_read_at is not None:
        span.past("read body", timeline.began_at, timeline.body_read_at)
    if timeline.body_read_at is not None and timeline.prepared_at is not None:
        facts = named(num_tokens=timeline.num_prompt_tokens)
        span.past("tokenise", timeline.body_read_at, timeline.prepared_at, facts)
    for number, choice in enumerate(timeline.choices):
        _trace_choice(span, choice, number)
    if timeline.state == "failed" and timeline.error is not None and timeline.status in (None, 200):
        span.failed(timeline.error)  # after its status was out


@contextmanager
def traced_attempt(note: AttemptNote) -> Iterator[None]:
    """Trace the body, in which a plan is carried out, with what was decided and how it went."""
    if not current_span().is_recording:
        yield
        return
    with traced("attempt", attributes=_decision(note.plan)) as span:
        try:
            yield
        finally:
            if note.first_token_at is not None and note.decode_sent_at is not None:
                span.past("first token", note.decode_sent_at, note.first_token_at)
            rescued_s = None if note.rescued_at is None else note.rescued_at - note.begun_at
            span.set(named(computed_prompt_tokens=note.computed_prompt_tokens, rescued_s=rescued_s))


@contextmanager
def traced_prefill(note: PrefillNote) -> Iterator[None]:
    """Trace the body, a call of a prefill worker."""
    with traced("prefill", "client", named(worker=note.site.worker, dc=note.site.dc)) as span:
        try:
            yield
        finally:
            span.set(named(reused_blocks=note.reused_blocks, computed_tokens=note.computed_tokens))


def _trace_choice(span: TraceSpan, choice: ChoiceNote, number: int) -> None:
    facts = named(choice=number)
    if choice.begun_at is not None and choice.planned_at is not None:
        plan = _decision(choice.attempts[0].plan) if choice.attempts else {}
        span.past("plan", choice.begun_at, choice.planned_at, {**facts, **plan})
    if choice.planned_at is not None and choice.passed_at is not None:
        span.past("queue", choice.planned_at, choice.passed_at, {**facts, **named(has_waited=choice.has_waited)})


def _decision(plan: PlanNote) -> Attributes:
    return named(
        plan=plan.kind,
        decode=plan.decode.worker,
        decode_dc=plan.decode.dc,
        prefill=None if plan.prefill is None else plan.prefill.worker,
        prefill_dc=None if plan.prefill is None else plan.prefill.dc,
        num_blocks=plan.num_blocks,
        usable_blocks=plan.usable_blocks,
        codec=plan.codec,
        forecast_ttft_s=plan.forecast_ttft_s,
        num_ways=len(plan.ways),
    )


def _usage(timeline: RequestTimeline) -> Attributes:
    """Return what the conventions for generative AI ask for, once it is known. Latencies are those of the first choice.

    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, and `SpanAttributes` of vLLM.
    """
    choice = timeline.choices[0] if timeline.choices else ChoiceNote()
    first_at = next((note.first_token_at for note in choice.attempts if note.first_token_at is not None), None)
    last_at = choice.tokens.last_at if choice.tokens.num_tokens else None
    reasons = [note.finish_reason for note in timeline.choices if note.finish_reason is not None]
    return {
        "gen_ai.operation.name": _OPERATIONS.get(timeline.kind, timeline.kind),
        "gen_ai.request.id": timeline.request_id,
        "gen_ai.usage.input_tokens": timeline.num_prompt_tokens,
        "gen_ai.usage.prompt_tokens": timeline.num_prompt_tokens,
        "gen_ai.usage.output_tokens": timeline.num_completion_tokens,
        "gen_ai.usage.completion_tokens": timeline.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": timeline.num_cached_tokens,
        "gen_ai.usage.num_sequences": timeline.num_choices,
        "gen_ai.response.finish_reasons": ",".join(reasons) or None,
        "gen_ai.latency.time_in_queue": _between(choice.planned_at, choice.passed_at),
        "gen_ai.latency.time_to_first_token": _between(timeline.began_at, first_at),
        "gen_ai.latency.time_in_model_prefill": _between(choice.passed_at, first_at),
        "gen_ai.latency.time_in_model_decode": _between(first_at, last_at),
        "gen_ai.latency.time_in_model_inference": _between(choice.passed_at, last_at),
        "gen_ai.latency.e2e": _between(timeline.began_at, timeline.ended_at),
    }


def _between(began_at: float | None, ended_at: float | None) -> float | None:
    return None if began_at is None or ended_at is None else max(0.0, ended_at - began_at)
