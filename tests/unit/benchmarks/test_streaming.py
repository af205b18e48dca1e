"""What the streaming and pipe benchmarks make of their samples."""

from pathlib import Path

import pytest

from benchmarks.pipe.__main__ import PipeCase, Pulled
from benchmarks.pipe.__main__ import row as pipe_row
from benchmarks.streaming.__main__ import ROUND_TRIP_S, Sample, StreamingFound, report
from benchmarks.streaming.plot import draw


def sample(ttft_s: float) -> Sample:
    return Sample(ttft_s, prefill_s=2.0, wire_bytes=20_000_000)


def test_the_bound_is_the_longer_of_both_and_a_round_trip(tmp_path: Path) -> None:
    found = [
        StreamingFound(0.5, 20e6, [sample(2.1), sample(2.15), sample(9.0)]),
        StreamingFound(1.0, 10e6, [sample(2.1)]),
        StreamingFound(2.0, 5e6, [sample(5.0)]),
    ]
    result, points = report(found, [sample(4.2)], {"tokens": 2000})
    streamed = [row for row in result.rows if row["mode"] == "streamed"]
    assert [row["bound_s"] for row in streamed] == [2 + ROUND_TRIP_S, 2 + ROUND_TRIP_S, 4 + ROUND_TRIP_S]
    assert [row["transfer_s"] for row in streamed] == [1.0, 2.0, 4.0]
    assert [check.met for check in result.checks] == [True, True, True, False]
    assert [check.value for check in result.checks] == pytest.approx([2.15 / 2.03, 2.1 / 2.03, 0.5, 5 / 4.03], abs=1e-3)
    assert [point.stored for point in points] == [None, pytest.approx(2.1), None]
    draw(points, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_row_of_the_pipe_quotes_medians() -> None:
    pulls = [Pulled(0.05, 2.0, speed, use, 1) for speed, use in ((100, 0.9), (110, 0.95), (90, 0.8))]
    found = pipe_row(PipeCase(8, 0.0005, 256), "cubic", pulls)
    assert (found["mb_per_s"], found["link_%"], found["dropped"]) == (100, 90, 3)
    assert (found["loss_%"], found["first_ms"]) == (0.05, 50)
