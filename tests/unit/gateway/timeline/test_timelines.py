"""The store of timelines: its bounds, its order, and how requests end."""

import asyncio

import pytest

from services.gateway.timeline.record import MAX_CHOICES, RequestTimeline, WorkerSite
from services.gateway.timeline.shown import summary_of, timeline_of
from services.gateway.timeline.timelines import Timelines
from shared.errors import Internal, NoWorker
from shared.timings import DecodeTimings, LayerTimes, PrefillTimings
from tests.support.timelines import PLAN_NOTE


def test_the_oldest_that_have_ended_go_first_and_their_ids_with_them() -> None:
    timelines = Timelines(max_ended=2)
    with timelines.follow("running", "chat") as running:
        for number in range(4):
            with timelines.follow(f"r{number}", "chat"):
                pass
        assert [t.request_id for t in timelines.recent(10)] == ["r3", "r2", "running"]
        assert (timelines.num_running, timelines.num_taken) == (1, 5)
        assert timelines.get("r0") is None
        assert timelines.get("running") is running
    assert [t.request_id for t in timelines.recent(10)] == ["r3", "running"]
    assert [t.request_id for t in timelines.recent(1)] == ["r3"]
    assert [t.request_id for t in timelines.recent(10, before=5)] == ["running"]


def test_long_timelines_are_fewer() -> None:
    layers = LayerTimes((0.0,) * 100, (0.0,) * 100)
    timelines = Timelines(max_ended=100, max_bytes=200_000)
    for number in range(50):
        with timelines.follow(str(number), "chat") as timeline:
            attempt = timeline.choice().carried_out(PLAN_NOTE)
            attempt.first_token(0.0, 1, DecodeTimings(landed=layers))
            attempt.prefill_sent(WorkerSite("p", "east")).heard(0, 0, PrefillTimings(computed=layers, sent=layers))
    assert 5 < len(timelines.recent(100)) < 20
    assert timelines.num_bytes <= 200_000
    assert timelines.get("49") is not None


def test_an_id_that_comes_again_means_the_later_request() -> None:
    timelines = Timelines(max_ended=2)
    for kind in ("chat", "completion", "chat"):
        with timelines.follow("same", kind):
            pass
    found = timelines.get("same")
    assert found is not None
    assert found.number == 3


@pytest.mark.parametrize(
    ("error", "state", "status", "code"),
    [
        (NoWorker("nobody"), "failed", 503, NoWorker.code),
        (asyncio.CancelledError(), "cancelled", 499, "cancelled"),
        (ConnectionResetError(), "cancelled", 499, "cancelled"),
        (ValueError(), "failed", 500, Internal.code),
    ],
)
def test_each_end_is_told(error: BaseException, state: str, status: int, code: str) -> None:
    timelines = Timelines()
    with pytest.raises(type(error)), timelines.follow("r", "chat"):
        raise error
    (found,) = timelines.recent(1)
    assert (found.state, found.status, found.error) == (state, status, code)
    assert timelines.num_running == 0


def test_a_stream_that_broke_off_has_failed_with_the_status_that_was_out() -> None:
    timelines = Timelines()
    with timelines.follow("r", "chat") as timeline:
        timeline.failed("worker_lost")
    assert (timeline.state, timeline.status, timeline.error) == ("failed", 200, "worker_lost")


def test_choices_beyond_the_bound_are_counted_and_not_kept() -> None:
    timeline = RequestTimeline(1, "r", "chat")
    timeline.prepared(10, 20, is_streamed=True)
    notes = [timeline.choice() for _ in range(20)]
    notes[19].tokens.add(1.0, 5)
    shown = timeline_of(timeline, timeline.began_at)
    assert (len(shown["choices"]), shown["num_choices"]) == (MAX_CHOICES, 20)


def test_who_watches_hears_of_those_that_run_and_those_that_have_just_ended() -> None:
    timelines = Timelines()
    with timelines.follow("old", "chat") as old:
        pass
    old.ended_at = 10.0
    with timelines.follow("new", "chat") as new:
        pass
    new.ended_at = 20.0
    with timelines.follow("running", "chat"):
        assert [t.request_id for t in timelines.changed_since(15.0)] == ["running", "new"]


def test_an_engines_times_are_placed_where_the_gateway_called_it() -> None:
    timeline = RequestTimeline(1, "r", "chat", began_at=100.0)
    choice = timeline.choice()
    attempt = choice.carried_out(PLAN_NOTE)
    attempt.decode_sent_at = 101.0
    prefill = attempt.prefill_sent(WorkerSite("prefill-east", "east"))
    prefill.sent_at = 102.0
    layers = LayerTimes((0.25, -1.0), (0.5, -1.0))
    prefill.heard(32, 1, PrefillTimings(ready_s=0.125, computed=layers, computed_s=0.5, stored_s=0.75))
    attempt.first_token(104.0, 4, DecodeTimings(landed=layers, gate_opened_s=0.5, computed_s=2.0, computed_tokens=4))
    shown = timeline_of(timeline, 105.0)["choices"][0]["attempts"][0]
    assert shown["prefills"][0]["worker_times"]["layers_computed"] == [[2.25, 2.5], None]
    assert shown["prefills"][0]["worker_times"]["stored_s"] == 2.75
    assert shown["decode"]["worker_times"]["layers_landed"] == [[1.25, 1.5], None]
    assert shown["decode"]["worker_times"]["tail_computed_s"] == 3.0
    assert shown["first_token_s"] == 4.0
    assert summary_of(timeline, 105.0)["ttft_s"] == 4.0
    assert summary_of(timeline, 105.0)["duration_s"] == 5.0
