"""What the benchmark of the router's choices makes of its samples."""

from benchmarks.home.__main__ import HomeSample, report
from benchmarks.home.sites import FIXED, ROUTER, gateway_of, layout
from benchmarks.wan.suite import WEST

TTFT_S = {ROUTER: 1.05, "alone": 1.0, "local": 1.4, "remote": 2.0}


def samples(num_tokens: int, **changes: float) -> list[HomeSample]:
    """Three rounds, the last of which was disturbed."""
    found = []
    for slowdown in (1.0, 1.0, 5.0):
        for name, seconds in {**TTFT_S, **changes}.items():
            found.append(HomeSample(name, num_tokens, slowdown * seconds, "decode_only", 0.9))
    return found


def test_the_router_is_compared_with_the_best_fixed_choice_of_each_length() -> None:
    found = report({"no WAN": samples(512) + samples(2048, router=1.2)}, {})
    assert [(row["tokens"], row["best"], row["router_to_best"]) for row in found.rows] == [
        (512, "alone", 1.05),
        (2048, "alone", 1.2),
    ]
    assert found.rows[0]["chosen"] == "decode_only 3"
    assert found.rows[0]["forecast_s"] == 0.9
    assert [check.met for check in found.checks] == [True, False]


def test_every_contestant_has_a_gateway_of_its_own() -> None:
    processes = layout(has_wan=False)
    assert {gateway_of(name) for name in (ROUTER, *FIXED)} <= set(processes.names)
    assert {processes.site(name) for name in processes.names} == {WEST}, "all are on one host"
    assert processes.environ[gateway_of(ROUTER)] == {"PRFAAS_ROUTING_POLICY": "cost"}
