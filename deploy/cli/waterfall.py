"""Timelines of requests as tables and bars."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.cli.tables import UNKNOWN, table_of, told

Json = dict[str, Any]

BAR_COLUMNS = 40


class TracedPhase(NamedTuple):
    """A part of a request's time, in seconds since the request came."""

    name: str
    first_s: float
    last_s: float


def requests_table(requests: Sequence[Json]) -> Table:
    """Return a row a request, in the order given."""
    columns = ("id", "state", ":prompt", ":cached", ":tokens", ":first token", ":forecast", ":took", "plan", "prefill")
    table = table_of("Requests", columns)
    for one in requests:
        table.add_row(
            one["id"],
            one["state"] if one["error"] is None else f"{one['state']}: {one['error']}",
            told(one["prompt_tokens"]),
            told(one["cached_tokens"]),
            told(one["completion_tokens"]),
            told(one["ttft_s"], "{:.3f} s"),
            told(one["forecast_ttft_s"], "{:.3f} s"),
            told(one["duration_s"], "{:.3f} s"),
            one["plan"] or UNKNOWN,
            UNKNOWN if one["prefill"] is None else one["prefill"]["worker"],
        )
    return table


def waterfall(timeline: Json) -> RenderableType:
    """Return a request's summary, and below it a bar for each phase that is known."""
    whole_s = max(timeline["duration_s"], 1e-6)
    table = table_of("", ("phase", ":from", ":took", ""))
    for phase in phases(timeline):
        table.add_row(
            phase.name, f"{phase.first_s:.3f} s", f"{phase.last_s - phase.first_s:.3f} s", bar(phase, whole_s)
        )
    return Group(requests_table([timeline]), table)


def bar(phase: TracedPhase, whole_s: float) -> Text:
    """Return a phase's place in the request's time."""
    first = min(BAR_COLUMNS - 1, int(phase.first_s / whole_s * BAR_COLUMNS))
    last = max(first + 1, min(BAR_COLUMNS, round(phase.last_s / whole_s * BAR_COLUMNS)))
    return Text(" " * first + "━" * (last - first), style="cyan")


def phases(timeline: Json) -> Iterator[TracedPhase]:
    """Yield the phases whose both ends are known, in the order of the road."""
    yield from _known("body read", 0.0, timeline["body_read_s"])
    yield from _known("prepared", timeline["body_read_s"], timeline["prepared_s"])
    for choice in timeline["choices"]:
        yield from _known("waits for its turn", choice["begun_s"], choice["passed_s"])
        for attempt in choice["attempts"]:
            yield from _of_attempt(attempt)
            yield from _known("tokens", attempt["first_token_s"], attempt["ended_s"])


def _of_attempt(attempt: Json) -> Iterator[TracedPhase]:
    for prefill in attempt["prefills"]:
        name, times = prefill["worker"], prefill["worker_times"]
        yield from _known(f"{name}: called", prefill["sent_s"], prefill["ended_s"])
        if times is not None:
            yield from _known(f"{name}: waits and fetches", prefill["sent_s"], times["ready_s"])
            yield from _known(f"{name}: computes", times["ready_s"], times["computed_s"])
            yield from _known(f"{name}: stores", times["computed_s"], times["stored_s"])
    decode, times = attempt["decode"], attempt["decode"]["worker_times"]
    name = decode["worker"]
    yield from _known(f"{name}: until the first token", decode["sent_s"], attempt["first_token_s"])
    if times is not None:
        yield from _known(f"{name}: waits for pages", decode["sent_s"], times["admitted_s"])
        yield from _known(f"{name}: waits for layer 0", times["admitted_s"], times["gate_opened_s"])
        yield from _known(f"{name}: computes the tail", times["gate_opened_s"], times["tail_computed_s"])


def _known(name: str, first_s: float | None, last_s: float | None) -> Iterator[TracedPhase]:
    if first_s is not None and last_s is not None and last_s >= first_s:
        yield TracedPhase(name, first_s, last_s)
