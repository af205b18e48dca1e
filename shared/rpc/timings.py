"""Timings of engines as messages, and back. What a peer sends is checked: it ends up in front of people."""

import math
from collections.abc import Sequence

from shared.proto import prfaas_pb2 as pb
from shared.timings import MAX_LAYERS, NO_LAYERS, DecodeTimings, LayerTimes, PrefillTimings


def prefill_timings_to_message(timings: PrefillTimings) -> pb.PrefillTimings:
    return pb.PrefillTimings(
        turn_s=timings.turn_s,
        reserved_s=timings.reserved_s,
        ready_s=timings.ready_s,
        reused_blocks=timings.reused_blocks,
        computed=_layers_to_message(timings.computed),
        sent=_layers_to_message(timings.sent),
        num_entries_sent=timings.num_entries_sent,
        computed_s=timings.computed_s,
        stored_s=timings.stored_s,
        launched=timings.is_launched,
    )


def prefill_timings_from_message(message: pb.Progress) -> PrefillTimings | None:
    """Return the timings of a call's last message; None where it has none, as those of older workers."""
    if not message.HasField("timings"):
        return None
    timings = message.timings
    return PrefillTimings(
        turn_s=_second(timings.turn_s),
        reserved_s=_second(timings.reserved_s),
        ready_s=_second(timings.ready_s),
        reused_blocks=timings.reused_blocks,
        computed=_layers_from_message(timings.computed),
        sent=_layers_from_message(timings.sent),
        num_entries_sent=timings.num_entries_sent,
        computed_s=_second(timings.computed_s),
        stored_s=_second(timings.stored_s),
        is_launched=timings.launched,
    )


def decode_timings_to_message(timings: DecodeTimings | None) -> pb.DecodeTimings | None:
    if timings is None:
        return None
    return pb.DecodeTimings(
        admitted_s=timings.admitted_s,
        landed=_layers_to_message(timings.landed),
        fetched_bytes=timings.fetched_bytes,
        gate_opened_s=timings.gate_opened_s,
        computed_s=timings.computed_s,
        computed_tokens=timings.computed_tokens,
    )


def decode_timings_from_message(message: pb.Tokens) -> DecodeTimings | None:
    """Return the timings that came with a first token; None where there are none."""
    if not message.HasField("timings"):
        return None
    timings = message.timings
    return DecodeTimings(
        admitted_s=_second(timings.admitted_s),
        landed=_layers_from_message(timings.landed),
        fetched_bytes=timings.fetched_bytes,
        gate_opened_s=_second(timings.gate_opened_s),
        computed_s=_second(timings.computed_s),
        computed_tokens=timings.computed_tokens,
    )


def _layers_to_message(times: LayerTimes) -> pb.LayerTimes:
    return pb.LayerTimes(first_s=times.first_s[:MAX_LAYERS], last_s=times.last_s[:MAX_LAYERS])


def _layers_from_message(message: pb.LayerTimes) -> LayerTimes:
    num_layers = min(len(message.first_s), len(message.last_s), MAX_LAYERS)
    if not num_layers:
        return NO_LAYERS
    return LayerTimes(_seconds(message.first_s[:num_layers]), _seconds(message.last_s[:num_layers]))


def _seconds(values: Sequence[float]) -> tuple[float, ...]:
    found = tuple(values)
    # One sum for all: a gateway reads hundreds of times of each request.
    return found if math.isfinite(sum(found)) else tuple(map(_second, found))


def _second(value: float) -> float:
    """Return 0 in place of what is no number, which JSON could not say."""
    return value if math.isfinite(value) else 0.0
