"""Prometheus instruments."""

import asyncio
import time

from prometheus_client import generate_latest

from shared.metrics import (
    INTER_TOKEN_BUCKETS_S,
    LAG_BUCKETS_S,
    REQUEST_BUCKETS_S,
    TTFT_BUCKETS_S,
    Metrics,
    watch_loop_lag,
)


def test_names_and_separate_registries() -> None:
    first, second = Metrics(), Metrics()
    first.counter("requests", "Requests.", ["reason"]).labels("stop").inc(2)
    first.gauge("num_requests_running", "Running.").set(3)
    first.histogram("time_to_first_token_seconds", "TTFT.", TTFT_BUCKETS_S).observe(0.2)
    second.counter("requests", "Requests.", ["reason"])
    sample = first.registry.get_sample_value
    assert sample("prfaas:requests_total", {"reason": "stop"}) == 2
    assert sample("prfaas:num_requests_running") == 3
    assert sample("prfaas:time_to_first_token_seconds_bucket", {"le": "0.25"}) == 1
    assert sample("prfaas:time_to_first_token_seconds_bucket", {"le": "0.1"}) == 0
    assert second.registry.get_sample_value("prfaas:requests_total", {"reason": "stop"}) is None
    assert b"process_resident_memory_bytes" in generate_latest(first.registry)


def test_a_loops_histogram_says_what_prometheus_own_says() -> None:
    metrics, labels = Metrics(), ("model_name", "engine")
    own = metrics.histogram("own_seconds", "Own.", INTER_TOKEN_BUCKETS_S, labels).labels("m", "gateway")
    loops = metrics.loop_histogram("loops_seconds", "Loop's.", INTER_TOKEN_BUCKETS_S, labels, ("m", "gateway"))
    for value in (0.0, 0.01, 0.011, 0.03, 80.0, 81.0, 1e6):
        own.observe(value)
        loops.observe(value)
    said = [line for line in generate_latest(metrics.registry).decode().splitlines() if "_created" not in line]
    of_own = [line.replace("own", "loops").replace("Own", "Loop's") for line in said if "own" in line.lower()]
    assert of_own == [line for line in said if "loop" in line.lower()]
    assert len(of_own) == len(INTER_TOKEN_BUCKETS_S) + 5


def test_buckets_ascend() -> None:
    for buckets in (TTFT_BUCKETS_S, INTER_TOKEN_BUCKETS_S, REQUEST_BUCKETS_S, LAG_BUCKETS_S):
        assert list(buckets) == sorted(set(buckets))


async def test_loop_lag_sees_a_blocked_loop() -> None:
    metrics = Metrics()
    watch = asyncio.create_task(watch_loop_lag(metrics, interval_s=0.01))
    await asyncio.sleep(0.03)
    time.sleep(0.15)  # noqa: ASYNC251 - the offence that is measured
    await asyncio.sleep(0.03)
    watch.cancel()
    sample = metrics.registry.get_sample_value
    count = sample("prfaas:event_loop_lag_seconds_count")
    below = sample("prfaas:event_loop_lag_seconds_bucket", {"le": "0.1"})
    assert count is not None
    assert below is not None
    assert count - below >= 1
