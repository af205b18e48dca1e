"""What is kept of requests: bounded, and copied for whoever looks."""

from dataclasses import replace

import pytest

from services.gateway.control.observed import Observations
from services.gateway.routing.plan import LinkUse, Plan
from shared.ids import Datacenter
from tests.support.plans import plan

EAST, WEST = Datacenter("east"), Datacenter("west")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def remote(ttft_s: float = 1.0, num_bytes: float = 0.0) -> Plan:
    crossings = (LinkUse(EAST, WEST, num_bytes),) if num_bytes else ()
    return replace(plan(), forecast=replace(plan().forecast, ttft_s=ttft_s, crossings=crossings))


def test_a_request_leaves_its_lengths_its_kind_and_its_time() -> None:
    observations = Observations(Clock())
    observations.sent(remote(0.5), 1000, 360)
    observations.first_token(remote(0.5), 0.75)
    observations.ended(3)
    found = observations.seen()
    assert (found.prompt_tokens.tolist(), found.uncached_tokens.tolist()) == ([1000], [360])
    assert found.output_tokens.tolist() == [3]
    assert found.kinds == {"none": 0, "local": 0, "remote": 1, "decode_only": 0}
    assert found.forecasts["remote"] == (1, 1.5, 1.5, 1.5)


def test_a_prompt_that_is_cached_has_a_token_that_is_computed() -> None:
    observations = Observations(Clock())
    observations.sent(plan(0), 64, 0)
    assert observations.seen().uncached_tokens.tolist() == [1]


def test_the_rest_of_a_request_is_no_arrival_but_its_forecast_counts() -> None:
    observations = Observations(Clock())
    observations.sent(remote(2.0), 1000, 360, is_first=False)
    observations.first_token(remote(2.0), 1.0)
    found = observations.seen()
    assert (found.num_requests, found.requests_per_s) == (0, 0)
    assert found.forecasts["remote"].p50 == 0.5


def test_one_that_ends_without_a_token_says_nothing_of_answers() -> None:
    observations = Observations(Clock())
    observations.sent(plan(), 10, 10)
    observations.ended(0)
    assert len(observations.seen().output_tokens) == 0
    assert observations.seen().forecasts == {}


def test_only_the_latest_requests_are_kept() -> None:
    observations = Observations(Clock(), kept_requests=3)
    for number in range(1, 6):
        observations.sent(plan(), number, number)
    assert sorted(observations.seen().prompt_tokens.tolist()) == [3, 4, 5]


def test_a_copy_does_not_change_with_what_comes_later() -> None:
    observations = Observations(Clock(), kept_requests=1)
    observations.sent(plan(), 5, 5)
    before = observations.seen()
    observations.sent(plan(), 6, 6)
    assert before.prompt_tokens.tolist() == [5]


def test_rates_fade_within_minutes() -> None:
    clock = Clock()
    observations = Observations(clock)
    for _ in range(600):
        clock.now += 0.5
        observations.sent(remote(num_bytes=10.0), 100, 100)
    found = observations.seen()
    assert found.requests_per_s == pytest.approx(2.0, rel=0.02)
    assert found.crossing_bytes_per_s[EAST, WEST] == pytest.approx(20.0, rel=0.02)
    clock.now += 600
    assert observations.seen().requests_per_s < 0.01
