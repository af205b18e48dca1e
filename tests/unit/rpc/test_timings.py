"""Timings over the wire: what is sent arrives, what is no time does not."""

import math

import pytest

from shared.proto import prfaas_pb2 as pb
from shared.rpc.timings import (
    decode_timings_from_message,
    decode_timings_to_message,
    prefill_timings_from_message,
    prefill_timings_to_message,
)
from shared.timings import MAX_LAYERS, NO_LAYERS, DecodeTimings, LayerMarks, LayerTimes, PrefillTimings

LAYERS = LayerTimes((0.5, -1.0), (0.75, -1.0))


def test_prefills_timings_arrive() -> None:
    sent = PrefillTimings(0.125, 0.25, 0.5, 3, LAYERS, LAYERS, 12, 1.5, 2.0, is_launched=True)
    assert prefill_timings_from_message(pb.Progress(timings=prefill_timings_to_message(sent))) == sent


def test_decodes_timings_arrive() -> None:
    sent = DecodeTimings(0.125, LAYERS, 1 << 40, 0.5, 1.5, 9)
    assert decode_timings_from_message(pb.Tokens(timings=decode_timings_to_message(sent))) == sent


def test_an_older_worker_says_none() -> None:
    assert prefill_timings_from_message(pb.Progress(finished=True)) is None
    assert decode_timings_from_message(pb.Tokens(ids=[1])) is None
    assert decode_timings_to_message(None) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_nothing(value: float) -> None:
    message = pb.Tokens(timings=pb.DecodeTimings(computed_s=value, landed=pb.LayerTimes(first_s=[value], last_s=[1])))
    found = decode_timings_from_message(message)
    assert found is not None
    assert (found.computed_s, found.landed) == (0.0, LayerTimes((0.0,), (1.0,)))


def test_lists_of_layers_are_parallel_and_bounded() -> None:
    long = pb.LayerTimes(first_s=[1.0] * (MAX_LAYERS + 9), last_s=[1.0] * (MAX_LAYERS + 5))
    uneven = pb.LayerTimes(first_s=[1.0])
    found = prefill_timings_from_message(pb.Progress(timings=pb.PrefillTimings(computed=long, sent=uneven)))
    assert found is not None
    assert len(found.computed.first_s) == len(found.computed.last_s) == MAX_LAYERS
    assert found.sent == NO_LAYERS


def test_marks_keep_the_first_and_the_last_time() -> None:
    now = [10.0]
    marks = LayerMarks(3, 10.0, lambda: now[0])
    assert marks.times() == NO_LAYERS
    for later_s, layers in ((1.0, (0,)), (2.0, (0, 1)), (3.0, (0,))):
        now[0] = 10.0 + later_s
        marks.note(layers)
    assert marks.times() == LayerTimes((1.0, 2.0, -1.0), (3.0, 2.0, -1.0))
