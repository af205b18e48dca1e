"""The gate on an event loop: who passes without waiting, who waits, and what those leave who stop waiting."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from services.gateway.admission.gate import GateLimits, Turn, TurnGate
from services.gateway.admission.rejection import QueueFull, TimePerOutputTokenUnmet, TtftUnmet
from services.gateway.admission.turn import TurnRequest
from services.gateway.metrics import GatewayMetrics
from services.gateway.routing.plan import Forecast, Plan, Slo
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded
from shared.ids import WorkerId
from shared.metrics import Metrics
from shared.tenant import Tenant
from tests.support.plans import plan
from tests.support.waiting import LIMIT_S

A, B = Tenant("a"), Tenant("b")
WORK = Forecast(ttft_s=0.5, model_s=0.5, time_per_output_token_s=0.01, decode_s=0.4)


def planned(decode: str = "decode-0", forecast: Forecast = WORK) -> Plan:
    return replace(plan(0, decode=decode), forecast=forecast)


class GateBench:
    """A gate with a clock that stands still unless it is set."""

    def __init__(self, limits: GateLimits, row_s: float = 0.0) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        metrics = GatewayMetrics(self.metrics, "tiny")
        self.gate = TurnGate(limits, metrics, row_s=lambda _worker: row_s, clock=lambda: self.now)

    def enter(
        self, asking: TurnRequest | None = None, plan: Plan | None = None, limit_s: float = LIMIT_S
    ) -> Coroutine[Any, Any, Turn]:
        return self.gate.enter(asking or TurnRequest(A), plan or planned(), Deadline.after(limit_s))

    async def waiting(self, asking: TurnRequest | None = None, plan: Plan | None = None) -> "asyncio.Task[Turn]":
        """Return a task that waits at the gate."""
        num_before = self.gate.num_waiting
        task = asyncio.create_task(self.enter(asking, plan))
        await asyncio.sleep(0)
        assert self.gate.num_waiting == num_before + 1
        return task

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"prfaas:{name}", {"model_name": "tiny", **labels}) or 0.0


@pytest.fixture
def bench() -> GateBench:
    return GateBench(GateLimits(window_s=0.5, max_waiting=3, max_waiting_of_tenant=2))


def at_once(entering: Coroutine[Any, Any, Turn]) -> Turn:
    """Run a coroutine that must not give up the event loop."""
    with pytest.raises(StopIteration) as passed:
        entering.send(None)
    turn: Turn = passed.value.value
    return turn


def test_with_room_a_request_passes_without_giving_up_the_event_loop(bench: GateBench) -> None:
    with at_once(bench.enter()) as turn:
        assert not turn.waited
        assert turn.sent(planned()) == 0
    assert bench.gate.num_waiting == 0


async def test_the_first_token_of_one_lets_the_next_one_pass(bench: GateBench) -> None:
    first, second = at_once(bench.enter()), at_once(bench.enter())
    third = await bench.waiting()
    bench.now += 0.25
    first.first_token()
    first.first_token()
    assert (await third).waited
    assert bench.metric("request_queue_time_seconds_sum", engine="gateway") == 0.25
    for turn in (first, second, await third):
        with turn:
            pass
    assert all(window.is_idle for window in bench.gate._windows.values())


async def test_the_end_of_a_request_without_a_token_lets_the_next_one_pass(bench: GateBench) -> None:
    with at_once(bench.enter()), at_once(bench.enter()):
        third = await bench.waiting()
    with await third:
        pass


async def test_workers_have_windows_of_their_own(bench: GateBench) -> None:
    for _ in range(2):
        at_once(bench.enter())
    await bench.waiting()
    assert not at_once(bench.enter(plan=planned("decode-1"))).waited
    handed_over = replace(plan(1), forecast=Forecast(1.0, 1.0, 0.01, prefill_s=0.5, decode_s=0.1))
    assert not at_once(bench.enter(plan=handed_over)).waited
    assert set(bench.gate._windows) == {"decode-0", "decode-1", "prefill-0"}


async def test_a_prefill_worker_that_is_done_may_go_on_while_kv_travels(bench: GateBench) -> None:
    handed_over = replace(plan(1), forecast=Forecast(5.0, 5.0, 0.01, prefill_s=0.5, decode_s=0.1))
    first = at_once(bench.enter(plan=handed_over))
    first.sent(handed_over)
    second = await bench.waiting(plan=handed_over)
    first.prefilled()
    with await second:
        pass
    at_decode = at_once(bench.enter(plan=planned()))
    at_decode.sent(planned())
    at_decode.prefilled()
    assert bench.gate._windows[WorkerId("decode-0")].first.num_prompts == 1


async def test_who_stops_waiting_is_forgotten_at_once(bench: GateBench) -> None:
    turns = [at_once(bench.enter()) for _ in range(2)]
    gone, stays = await bench.waiting(), await bench.waiting()
    gone.cancel()
    await asyncio.wait({gone})
    assert bench.gate.num_waiting == 1
    turns[0].first_token()
    await stays
    assert bench.metric("num_requests_waiting", engine="gateway") == 0


async def test_a_turn_that_comes_to_one_who_has_just_gone_passes_on(bench: GateBench) -> None:
    turns = [at_once(bench.enter()) for _ in range(2)]
    gone, next_one = await bench.waiting(), await bench.waiting()
    turns[0].first_token()  # the turn is handed out, and its task has not run yet
    gone.cancel()
    await asyncio.wait({gone})
    assert gone.cancelled()
    assert (await next_one).waited


async def test_a_wait_ends_with_the_deadline(bench: GateBench) -> None:
    for _ in range(2):
        at_once(bench.enter())
    with pytest.raises(DeadlineExceeded):
        await bench.enter(limit_s=0.01)
    assert bench.gate.num_waiting == 0


async def test_queues_are_bounded_for_a_tenant_and_for_all(bench: GateBench) -> None:
    for _ in range(2):
        at_once(bench.enter())
    await bench.waiting()
    await bench.waiting()
    with pytest.raises(QueueFull, match="of this tenant") as full:
        await bench.enter()
    assert full.value.retry_after_s == pytest.approx(0.3, abs=0.01)  # 0.8 s are under way, 0.5 s have room
    for _ in range(2):
        at_once(bench.enter(TurnRequest(B)))  # uses little, and has room where a has none
    await bench.waiting(TurnRequest(B))
    with pytest.raises(QueueFull, match="too many requests wait"):
        await bench.enter(TurnRequest(B))
    assert bench.metric("admission_rejections_total", reason="queue") == 2


async def test_a_first_token_that_would_be_late_is_refused_by_when_it_would_come(bench: GateBench) -> None:
    for _ in range(2):
        at_once(bench.enter())
    busy = planned(forecast=replace(WORK, ttft_s=1.2))
    with pytest.raises(TtftUnmet) as late:
        await bench.enter(TurnRequest(A, slo=Slo(ttft_s=1.0)), busy)
    assert late.value.retry_after_s == pytest.approx(0.2, abs=0.01)
    assert late.value.retriable is False
    await bench.waiting(TurnRequest(A, slo=Slo(ttft_s=1.3)), busy)
    assert bench.metric("admission_rejections_total", reason="ttft") == 1


async def test_a_request_is_planned_with_what_waits_before_it(bench: GateBench) -> None:
    assert bench.gate.waits(TurnRequest(A)) == {}
    at_once(bench.enter(plan=planned("decode-1")))
    for _ in range(2):
        at_once(bench.enter())
    assert bench.gate.waits(TurnRequest(A)) == {}, "what is under way is in its worker's queue"
    waiting = await bench.waiting()
    await bench.waiting()
    assert bench.gate.waits(TurnRequest(A)) == {"decode-0": pytest.approx(2 * WORK.work_s)}
    assert bench.gate.waits(TurnRequest(B)) == {"decode-0": 0}, "uses little, and has room where A has none"
    assert bench.gate.waits(TurnRequest(A, priority=-1)) == {"decode-0": 0}
    waiting.cancel()
    await asyncio.wait({waiting})
    assert bench.gate.waits(TurnRequest(A)) == {"decode-0": pytest.approx(WORK.work_s)}


async def test_whose_turn_has_come_does_not_wait_for_those_behind_it(bench: GateBench) -> None:
    turns = [at_once(bench.enter()) for _ in range(2)]
    first = await bench.waiting()
    await bench.waiting()
    turns[0].first_token()
    passed = await asyncio.wait_for(first, LIMIT_S)
    assert set(bench.gate.waits(TurnRequest(A))) == {"decode-0"}
    assert bench.gate.waits(TurnRequest(A), passed) == {}
    for _ in range(2):
        at_once(bench.enter(plan=planned("decode-1")))
    await bench.waiting(plan=planned("decode-1"))
    assert set(bench.gate.waits(TurnRequest(A), passed)) == {"decode-1"}


async def test_tokens_that_would_come_slowly_are_refused_by_the_batch_that_the_request_would_meet() -> None:
    bench = GateBench(GateLimits(window_s=100.0), row_s=0.005)
    asking = TurnRequest(A, slo=Slo(time_per_output_token_s=0.02), output_tokens=100)
    joining = planned(forecast=replace(WORK, ttft_s=0.4))  # 0.01 s a token: no row is in the batch yet
    for _ in range(2):
        at_once(bench.enter(asking, joining)).sent(joining)
    late = planned(forecast=replace(WORK, ttft_s=0.5))
    third = at_once(bench.enter(asking, late))
    third.sent(joining)
    with pytest.raises(TimePerOutputTokenUnmet) as slow:
        await bench.enter(asking, late)
    assert slow.value.retry_after_s == pytest.approx(0.4 + 100 * 0.01)  # one of them has to end
    with third:
        pass
    at_once(bench.enter(asking, late))


async def test_a_request_that_goes_on_elsewhere_is_counted_there(bench: GateBench) -> None:
    with at_once(bench.enter()) as turn:
        turn.sent(planned())
        turn.first_token()
        turn.sent(planned("decode-1"))  # decode-0 was lost
        windows = bench.gate._windows
        assert windows[WorkerId("decode-0")].is_idle
        assert windows[WorkerId("decode-1")].num_open == 1
    assert all(window.is_idle for window in windows.values())
    assert not any(batch.rows for batch in bench.gate._batches.values())


async def test_windows_of_workers_that_are_gone_are_forgotten(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.admission.gate.MAX_IDLE_WINDOWS", 3)
    busy = at_once(bench.enter(plan=planned("busy")))
    for number in range(10):
        with at_once(bench.enter(plan=planned(f"decode-{number}"))):
            pass
    assert len(bench.gate._windows) <= 3
    assert WorkerId("busy") in bench.gate._windows
    with busy:
        pass
