"""Times of a prompt, and the phases of its trace that are made from them."""

import pytest

from services.prefill.times import MAX_CHUNKS, PromptTimes
from shared.engine.batching import Ready
from shared.telemetry.tracing import begun
from tests.support.traces import kept_spans, seconds


def test_phases_of_a_trace_are_the_times_that_are_told() -> None:
    now = 100.0
    with kept_spans() as kept, begun("call", [], {}) as span:
        times = PromptTimes(2, 99.0, span, lambda: now)
        times.turn_came()
        now = 101.0
        times.reserved()
        now = 103.0
        times.ready(4)
        for layer in range(2):
            times.layer_computed(Ready(layer, 4, 6))
        now = 104.0
        times.chunk_computed(384)
        times.layer_sent(0)
        now = 107.0
        times.chunk_computed(512)
        times.computed()
        now = 107.5
        timings = times.timings(4, 2)
    assert (timings.turn_s, timings.reserved_s, timings.ready_s) == (1.0, 2.0, 4.0)
    assert (timings.computed_s, timings.stored_s) == (8.0, 8.5)
    took = {name: seconds(kept.one(name)) for name in set(kept.names) - {"call", "chunk"}}
    assert took == pytest.approx(
        {"wait for turn": 1.0, "wait for pages": 1.0, "reuse": 2.0, "compute": 4.0, "publish": 3.5}, abs=1e-6
    )
    assert kept.children("compute") == ["chunk", "chunk"]
    chunks = [span for span in kept.exporter.get_finished_spans() if span.name == "chunk"]
    assert [seconds(chunk) for chunk in chunks] == pytest.approx([1.0, 3.0], abs=1e-6)
    assert [(chunk.attributes or {})["prfaas.num_tokens"] for chunk in chunks] == [384, 512]
    assert (kept.one("reuse").attributes or {})["prfaas.reused_blocks"] == 4


def test_a_long_prompt_has_a_bounded_number_of_spans() -> None:
    with kept_spans() as kept, begun("call", [], {}) as span:
        times = PromptTimes(1, 0.0, span, lambda: 1.0)
        for number in range(2 * MAX_CHUNKS):
            times.chunk_computed(number)
        times.computed()
    assert kept.names.count("chunk") == MAX_CHUNKS
