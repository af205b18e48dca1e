"""Refusals are counted one by one and logged now and then."""

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from shared.security.refusals import TELL_EVERY_S, Refusals, SecurityCollector


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_is_a_line_and_a_count() -> None:
    refusals = Refusals(clock := Clock())
    with capture_logs() as logs:
        for _ in range(100):
            refusals.note("lane", "us", "no certificate", "10.0.0.9:55")
        refusals.note("lane", "peer", "expired")
        clock.now += TELL_EVERY_S
        refusals.note("lane", "us", "no certificate")
    told = [(entry["event"], entry["num_since_last_line"]) for entry in logs]
    assert told == [("connection_refused", 1), ("connection_refused_by_peer", 1), ("connection_refused", 100)]
    assert refusals.counts() == {("lane", "us"): 101, ("lane", "peer"): 1}


def test_metrics() -> None:
    refusals, registry = Refusals(), CollectorRegistry()
    registry.register(SecurityCollector(refusals, lambda: 0.0))
    with capture_logs():
        refusals.note("grpc", "us", "wrong role")
    labels = {"kind": "grpc", "by": "us"}
    assert registry.get_sample_value("prfaas:connections_refused_total", labels) == 1
    left_s = registry.get_sample_value("prfaas:certificate_expiry_seconds")
    assert left_s is not None
    assert left_s < -1e9
