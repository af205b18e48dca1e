"""Scripted workers that tell when things happened, as engines do."""

import asyncio
from collections.abc import AsyncIterator

from shared.proto import prfaas_pb2 as pb
from shared.rpc.timings import decode_timings_to_message, prefill_timings_to_message
from shared.timings import DecodeTimings, LayerTimes, PrefillTimings
from tests.support.gateway import Behaviour, Call, prefills, says

PREFILL_TIMINGS = PrefillTimings(
    turn_s=0.001,
    reserved_s=0.002,
    ready_s=0.005,
    computed=LayerTimes((0.01, 0.02), (0.03, 0.04)),
    sent=LayerTimes((0.011, 0.021), (0.031, 0.041)),
    num_entries_sent=12,
    computed_s=0.041,
    stored_s=0.045,
)
DECODE_TIMINGS = DecodeTimings(
    admitted_s=0.001,
    landed=LayerTimes((0.012, 0.022), (0.032, 0.042)),
    fetched_bytes=4096,
    gate_opened_s=0.032,
    computed_s=0.05,
    computed_tokens=4,
)


def prefills_timed(computed: int) -> Behaviour:
    """`prefills`, with timings on the last message."""

    async def behave(call: Call) -> AsyncIterator[pb.Progress]:
        async for progress in prefills(computed)(call):
            if progress.finished:
                progress.timings.CopyFrom(prefill_timings_to_message(PREFILL_TIMINGS))
            yield progress

    return behave


def says_timed(text: str, *, computed: int) -> Behaviour:
    """`says`, with timings on the first message, which comes no sooner than they say."""

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        timings = decode_timings_to_message(DECODE_TIMINGS)
        await asyncio.sleep(DECODE_TIMINGS.computed_s)
        async for tokens in says(text, computed=computed)(call):
            if timings is not None:
                tokens.timings.CopyFrom(timings)
                timings = None
            yield tokens

    return behave
