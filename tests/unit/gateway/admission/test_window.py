"""What passes to a worker, what waits, and what the worker is told of tenants that use much."""

import math

import pytest

from services.gateway.admission.usage import PRESENT_S
from services.gateway.admission.window import DispatchWindow, Occupancy, UnderWay
from shared.tenant import Tenant

A, B, C = Tenant("a"), Tenant("b"), Tenant("c")


def window(window_s: float = 1.0) -> DispatchWindow[str]:
    return DispatchWindow[str](window_s)


def passed(door: DispatchWindow[str], tenant: Tenant, cost_s: float, now: float = 0.0) -> UnderWay:
    request = door.pass_now(tenant, cost_s, now)
    assert request is not None
    return request


def test_requests_pass_until_the_window_is_full_and_then_one_for_each_prompt_that_is_done() -> None:
    door = window()
    first, *_ = [passed(door, A, 0.4) for _ in range(3)]
    assert door.pass_now(A, 0.4, 0.0) is None
    door.queue.push(A, 0.4, 0, "waits")
    assert door.next(0.0) is None
    door.prompt_done(first, 1.0)
    door.prompt_done(first, 1.0)
    waiting = door.next(1.0)
    assert waiting is not None
    assert waiting.item == "waits"
    door.start(waiting.tenant, waiting.cost_s, 1.0)
    assert door.pass_now(A, 0.4, 1.0) is None


def test_one_request_may_always_be_under_way_whatever_it_costs() -> None:
    door = window(0.1)
    request = passed(door, A, 60.0)
    assert door.pass_now(A, 0.01, 0.0) is None
    door.ended(request, 1.0)
    assert door.is_idle
    passed(door, A, 60.0, 1.0)


def test_nobody_overtakes_those_who_wait_even_where_there_is_room() -> None:
    door = window()
    door.queue.push(A, 0.4, 0, "waits")
    assert door.pass_now(A, 0.1, 0.0) is None


def test_a_tenant_that_uses_little_has_a_window_that_the_busiest_leaves_free() -> None:
    door = window()
    for _ in range(3):
        passed(door, A, 0.4)
    assert door.pass_now(A, 0.4, 0.0) is None
    passed(door, B, 0.4)
    door.queue.push(A, 0.4, 0, "more of a")
    door.queue.push(B, 0.1, 0, "b")
    waiting = door.next(0.0)
    assert waiting is not None
    assert waiting.item == "b"  # though A's came first
    assert door.next(0.0) is None


def test_requests_that_are_sent_here_after_a_wait_elsewhere_leave_the_second_window_free() -> None:
    door = window()
    passed(door, A, 1.0)
    sent = [door.start(A, 1.0, 0.0) for _ in range(3)]  # planned anew: here, room or not
    assert (door.first.num_prompts, door.second.num_prompts) == (4, 0)
    passed(door, B, 0.5)
    assert door.second.num_prompts == 1
    for request in sent:
        door.ended(request, 1.0)
    assert door.pass_now(C, 0.5, 1.0) is not None


def test_tenants_that_use_alike_share_one_window() -> None:
    door = window()
    num_passed = 0
    while door.pass_now((A, B, C)[num_passed % 3], 0.11, 0.0) is not None:
        num_passed += 1
    assert num_passed == 10


def test_alone_a_tenant_keeps_its_priorities() -> None:
    door = window(10.0)
    for priority in (-5, 0, 7):
        assert door.priority_at_worker(passed(door, A, 0.1), priority) == priority


def test_among_tenants_a_request_may_stand_back_but_not_push_ahead() -> None:
    door = window(10.0)
    busiest = [passed(door, A, 0.1) for _ in range(8)][-1]
    modest = passed(door, B, 0.1)
    assert [door.priority_at_worker(modest, priority) for priority in (-5, 0, 7)] == [0, 0, 7]
    assert [door.priority_at_worker(busiest, priority) for priority in (-5, 0, 7)] == [10, 10, 17]


def test_a_tenant_that_was_here_a_minute_ago_is_not_waited_for() -> None:
    door = window()
    passed(door, B, 0.1)
    request = passed(door, A, 0.4, PRESENT_S - 1)
    assert door.priority_at_worker(request, -1) == 0
    passed(door, A, 0.4, PRESENT_S + 1)
    assert door.priority_at_worker(request, -1) == -1


def test_without_a_limit_nothing_waits_and_priorities_pass_on() -> None:
    door = window(math.inf)
    requests = [passed(door, tenant, 100.0) for tenant in (A, B, A, B)]
    assert [door.priority_at_worker(request, -3) for request in requests] == [-3] * 4


def test_a_wait_is_foretold_by_what_is_ahead_and_how_fast_it_goes() -> None:
    door = window()
    assert door.wait_s(A, 0, 0.0) == 0.0
    requests = [passed(door, A, 0.5) for _ in range(2)]
    for _ in range(8):
        door.queue.push(A, 0.5, 0, "")
    assert door.wait_s(A, 0, 0.0) == pytest.approx(4.0)
    assert door.wait_s(A, -1, 0.0) == pytest.approx(0.0)
    for number in range(40):  # at half the speed
        now = 1.0 + number
        door.prompt_done(requests[number], now)
        waiting = door.next(now)
        assert waiting is not None
        requests.append(door.start(A, 0.5, now))
        door.queue.push(A, 0.5, 0, "")
    assert door.wait_s(A, 0, 41.0) == pytest.approx(8.0, rel=0.05)


def test_everything_given_back_leaves_nothing() -> None:
    door = window()
    for request in [passed(door, tenant, 0.1) for tenant in (A, B, A)]:
        door.ended(request, 1.0)
    assert door.is_idle
    assert (door.first, door.second) == (Occupancy(), Occupancy())
