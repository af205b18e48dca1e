"""The phases of one request as spans of its call, made when it is over from the times that it has kept."""

import time

from services.decode.request import Request
from shared.telemetry.spans import named


def trace_phases(request: Request) -> None:
    """Record the phases that a request went through, the last one ending now."""
    span = request.generation.span
    if not span.is_recording:
        return
    now, computed_at = time.monotonic(), request.first_token_at
    opened_at = None if request.gate_opened_at_s is None else now - (time.time() - request.gate_opened_at_s)
    admitted_at = request.admitted_at
    span.past("wait for pages", request.generation.began_at, admitted_at or now)
    if admitted_at is not None:
        facts = named(fetched_bytes=request.fetched_bytes, num_blocks=request.generation.num_blocks)
        span.past("wait for blocks", admitted_at, opened_at or now, facts)
    if opened_at is not None:
        span.past("tail", opened_at, computed_at or now, named(computed_tokens=request.num_computed))
    if computed_at is not None:
        span.past("generate", computed_at, now, named(num_tokens=request.num_generated))
    span.set(named(num_prompt_tokens=request.num_prompt_tokens, num_tokens=request.num_generated))
