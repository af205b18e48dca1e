"""What is measured of one choice."""

import pytest

from services.gateway.metrics import GatewayMetrics
from services.gateway.request.timer import RequestTimer
from services.gateway.routing.plan import NO_SLO, Slo
from services.gateway.timeline.record import ChoiceNote
from shared.metrics import Metrics

ENGINE = {"model_name": "m", "engine": "gateway"}
SPANS = {
    "time_to_first_token": 3.0,
    "request_prefill_time": 2.5,
    "request_decode_time": 2.0,
    "request_inference_time": 4.5,
    "request_time_per_output_token": 0.5,
    "e2e_request_latency": 5.25,
}


class Bench:
    """A timer with a clock that is set by hand."""

    def __init__(self, slo: Slo = NO_SLO) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        self.note = ChoiceNote()
        self.timer = RequestTimer(GatewayMetrics(self.metrics, "m"), self.note, slo, lambda: self.now)

    def observed(self, name: str) -> tuple[float, float]:
        """Return how often and how much in all."""
        value = self.metrics.registry.get_sample_value
        count, total = (value(f"prfaas:{name}_seconds_{end}", ENGINE) for end in ("count", "sum"))
        assert count is not None
        assert total is not None
        return count, total

    def outcomes(self) -> set[tuple[str, str]]:
        return {
            (sample.labels["objective"], sample.labels["outcome"])
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "prfaas:slo_outcomes_total"
        }

    def run(self) -> None:
        """Wait half a second, prefill in 2.5, send five tokens in two seconds, and be read a little later."""
        self.now += 0.5
        self.note.passed_at = self.now
        self.now += 2.0
        self.now += 0.5
        self.timer.tokens(1)
        self.timer.tokens(0)
        self.now += 0.5
        self.timer.tokens(1)
        self.now += 1.5
        self.timer.tokens(3)
        self.now += 0.25
        self.timer.finished()


@pytest.mark.parametrize(("name", "seconds"), SPANS.items())
def test_spans_of_a_choice(name: str, seconds: float) -> None:
    bench = Bench()
    bench.run()
    count, total = bench.observed(name)
    assert count == 1
    assert total == pytest.approx(seconds)


def test_gaps_are_shared_by_the_tokens_behind_them() -> None:
    bench = Bench()
    bench.run()
    count, total = bench.observed("inter_token_latency")
    assert count == 2
    assert total == pytest.approx(0.5 + 1.5 / 3)


def test_one_token_has_no_time_per_token() -> None:
    bench = Bench(Slo(time_per_output_token_s=1.0))
    bench.note.passed_at = bench.now
    bench.timer.tokens(1)
    bench.timer.finished()
    assert bench.observed("request_time_per_output_token") == (0, 0)
    assert bench.observed("request_decode_time") == (1, 0)
    assert bench.outcomes() == set()


def test_an_answer_without_tokens_has_a_latency_only() -> None:
    bench = Bench()
    bench.timer.finished()
    assert bench.observed("e2e_request_latency")[0] == 1
    assert bench.observed("request_decode_time")[0] == bench.observed("request_inference_time")[0] == 0


@pytest.mark.parametrize(
    ("slo", "outcomes"),
    [
        (NO_SLO, set()),
        (Slo(3.0, 0.5), {("ttft", "met"), ("tpot", "met")}),
        (Slo(2.9, 0.51), {("ttft", "missed"), ("tpot", "met")}),
        (Slo(None, 0.49), {("tpot", "missed")}),
    ],
)
def test_objectives_are_settled_by_what_a_choice_got(slo: Slo, outcomes: set[tuple[str, str]]) -> None:
    bench = Bench(slo)
    bench.run()
    assert bench.outcomes() == outcomes
