"""Turns among tenants: who is next, what was served to each, what is forgotten."""

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.admission.fair_queue import QUANTUM_S, FairQueue, Waiting
from shared.tenant import Tenant

A, B, C = Tenant("a"), Tenant("b"), Tenant("c")
COSTS = st.floats(0.001, 3.0)


def served(queue: FairQueue[str], num: int) -> list[str]:
    return [queue.pop().item for _ in range(num)]


def test_within_a_tenant_lower_priorities_and_then_earlier_arrivals_go_first() -> None:
    queue = FairQueue[str]()
    for item, priority in (("late", 3), ("first", 0), ("second", 0), ("urgent", -1)):
        queue.push(A, 0.3, priority, item)
    assert served(queue, 4) == ["urgent", "first", "second", "late"]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_priority_does_not_get_ahead_of_another_tenant() -> None:
    queue = FairQueue[str]()
    for number in range(10):
        queue.push(A, 0.2, -1000, f"a{number}")
        queue.push(B, 0.2, 0, f"b{number}")
    assert Counter(item[0] for item in served(queue, 10)) == {"a": 5, "b": 5}


def test_a_tenant_that_comes_is_served_next_however_much_waits() -> None:
    queue = FairQueue[str]()
    for number in range(50):
        queue.push(A, 0.3, 0, f"a{number}")
    served(queue, 7)
    queue.push(B, 0.3, 0, "b")
    assert served(queue, 1) == ["b"]


def test_tenants_get_equal_time_not_equal_numbers() -> None:
    queue = FairQueue[str]()
    for number in range(100):
        queue.push(A, 1.0, 0, f"a{number}")
        for part in range(10):
            queue.push(B, 0.1, 0, f"b{number}.{part}")
    counts = Counter(item[0] for item in served(queue, 110))
    assert counts["b"] == pytest.approx(10 * counts["a"], rel=0.2)


def test_asking_for_one_thing_at_a_time_gains_nothing() -> None:
    queue = FairQueue[str]()
    for number in range(400):
        queue.push(A, 0.1, 0, f"a{number}")
    spent: Counter[Tenant] = Counter()
    for _ in range(200):
        if queue.num_of(B) == 0:
            queue.push(B, 1.0, 0, "b")  # as soon as the last one was served
        waiting = queue.pop()
        spent[waiting.tenant] += round(10 * waiting.cost_s)
    assert abs(spent[A] - spent[B]) <= 10 * (QUANTUM_S + 2 * 1.0)


def test_what_passes_without_waiting_is_paid_for() -> None:
    queue = FairQueue[str]()
    for number in range(20):
        queue.push(A, 0.3, 0, f"a{number}")
    queue.charge(B, 1.5)
    queue.push(B, 0.3, 0, "b")
    assert 4 <= served(queue, 8).index("b") <= 6


def test_what_is_taken_back_costs_nothing_and_leaves_nothing() -> None:
    queue = FairQueue[str]()
    first, second = queue.push(A, 5.0, 0, "first"), queue.push(A, 0.1, 2, "second")
    queue.push(B, 0.1, 0, "b")
    queue.remove(first)
    assert (len(queue), queue.num_of(A)) == (2, 1)
    assert queue.waiting_s == pytest.approx(0.2)
    assert served(queue, 2) == ["second", "b"]
    assert not queue._backlogs
    assert second.priority == 2


def test_a_debt_of_many_quanta_is_settled_in_one_pass() -> None:
    queue = FairQueue[str](quantum_s=1e-9)
    for number in range(20):
        queue.push(A, 60.0, 0, f"a{number}")
        queue.push(B, 60.0, 0, f"b{number}")
    assert Counter(item[0] for item in served(queue, 20)) == {"a": 10, "b": 10}


@given(st.lists(COSTS, min_size=30, max_size=60), st.lists(COSTS, min_size=30, max_size=60), st.integers(1, 25))
@settings(deadline=None)
def test_what_two_tenants_were_served_differs_by_a_quantum_and_two_costs(
    costs_a: list[float], costs_b: list[float], num: int
) -> None:
    queue = FairQueue[str]()
    for tenant, costs in ((A, costs_a), (B, costs_b)):
        for cost_s in costs:
            queue.push(tenant, cost_s, 0, tenant)
    spent = {A: 0.0, B: 0.0}
    for _ in range(num):
        waiting = queue.pop()
        spent[waiting.tenant] += waiting.cost_s
    assert abs(spent[A] - spent[B]) <= QUANTUM_S + 2 * max(*costs_a, *costs_b)


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.integers(0, 3), st.integers(-2, 2), COSTS)))
@settings(deadline=None)
def test_nothing_is_lost_or_handed_out_twice(steps: list[tuple[str, int, int, float]]) -> None:
    queue = FairQueue[int]()
    there: dict[int, Waiting[int]] = {}
    for number, (step, which, priority, cost_s) in enumerate(steps):
        if step == "push":
            there[number] = queue.push(Tenant(str(which)), cost_s, priority, number)
        elif step == "pop" and there:
            popped = there.pop(queue.pop().item)
            same = [waiting for waiting in there.values() if waiting.tenant == popped.tenant]
            assert all((popped.priority, popped.number) < (other.priority, other.number) for other in same)
        elif step == "remove" and there:
            queue.remove(there.pop(list(there)[which % len(there)]))
        assert len(queue) == len(there)
        assert queue.waiting_s == pytest.approx(sum(waiting.cost_s for waiting in there.values()), abs=1e-6)


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(-1, 1), st.floats(0.05, 0.5)), max_size=40),
    st.sampled_from([A, B, C]),
    st.integers(-1, 1),
)
@settings(deadline=None)
def test_what_is_ahead_of_a_newcomer_is_foretold(
    waiting: list[tuple[Tenant, int, float]], tenant: Tenant, priority: int
) -> None:
    queue = FairQueue[str]()
    for other, level, cost_s in waiting:
        queue.push(other, cost_s, level, "")
    foretold_s = queue.ahead_s(tenant, priority)
    mine = queue.push(tenant, 0.5, priority, "mine")
    ahead_s, popped = 0.0, deque([queue.pop()])
    while popped[0] is not mine:
        ahead_s += popped.popleft().cost_s
        popped.append(queue.pop())
    assert ahead_s == pytest.approx(foretold_s, abs=3 * (QUANTUM_S + 2 * 0.5))
