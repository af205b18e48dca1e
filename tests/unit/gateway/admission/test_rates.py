"""What is measured over the last seconds: work done, events, and what tenants have used."""

import pytest

from services.gateway.admission.rate import SLOWEST, EventRate, WorkRate
from services.gateway.admission.usage import MAX_PRESENT, PRESENT_S, TenantUsage
from shared.tenant import Tenant

A, B = Tenant("a"), Tenant("b")


def test_the_rate_is_of_the_time_in_which_there_was_something_to_do() -> None:
    rate = WorkRate()
    assert rate.value == 1.0
    now = 0.0
    for _ in range(60):
        rate.note(0.0, now, False)  # idle until now
        now += 0.5
        rate.note(1.0, now, True)
        now += 30.0
    assert rate.value == pytest.approx(2.0, rel=0.05)


def test_a_worker_that_stands_still_has_a_rate_all_the_same() -> None:
    rate = WorkRate()
    for second in range(1000):
        rate.note(0.0, float(second), True)
    assert rate.value == SLOWEST


def test_the_next_event_is_expected_after_the_usual_gap() -> None:
    events = EventRate()
    assert events.next_in_s(0.0) == 1.0
    for second in range(0, 100, 4):
        events.note(float(second))
    assert events.next_in_s(97.0) == pytest.approx(3.0)
    assert events.next_in_s(116.0) == pytest.approx(20.0)  # overdue


def test_who_uses_nearly_what_the_busiest_uses_is_not_modest() -> None:
    usage = TenantUsage()
    usage.add(A, 1.0, 0.0)
    assert usage.is_modest(B, 0.0)
    assert not usage.is_modest(A, 0.0)
    usage.add(B, 0.7, 0.0)
    assert usage.is_modest(B, 0.0)
    usage.add(B, 0.1, 0.0)
    assert not usage.is_modest(B, 0.0)


def test_what_was_used_is_forgotten_in_seconds() -> None:
    usage = TenantUsage()
    usage.add(B, 10.0, 0.0)
    for second in range(40):
        usage.add(A, 1.0, float(second))
    assert usage.is_modest(B, 39.0)


def test_few_tenants_are_remembered_and_those_of_the_last_minute() -> None:
    usage = TenantUsage()
    for number in range(MAX_PRESENT + 10):
        usage.asked(Tenant(str(number)), 0.0)
    assert usage.num_present == MAX_PRESENT
    usage.asked(A, PRESENT_S + 1)
    assert usage.num_present == 1
