"""The processes that the tenants share, and their cores: engines have the first, or one each; all else has the last."""

import os

from benchmarks.wan.suite import Layout

FIRST = ("broker-west", "cachepool-west")
ONE_ENGINE, TWO_ENGINES = "decode alone", "prefill and decode"
LAYOUTS = {
    ONE_ENGINE: (*FIRST, "decode-west", "gateway-west"),
    TWO_ENGINES: (*FIRST, "prefill-west", "decode-west", "gateway-west"),
}


def engine_core() -> int:
    """Return the core of the engine that computes prompts, which nothing else has."""
    return min(os.sched_getaffinity(0))


def other_cores() -> list[int]:
    """Return the cores of all else, the tenants included."""
    return sorted(os.sched_getaffinity(0))[1:] or [engine_core()]


def computing_engine(name: str) -> str:
    """Return the engine that computes all prompts of a layout."""
    return "prefill-west" if "prefill-west" in LAYOUTS[name] else "decode-west"


def layout(name: str) -> Layout:
    """Return one of `LAYOUTS`: on one host, where the engine that computes prompts shares its core with nobody."""
    return Layout(names=LAYOUTS[name], cores={computing_engine(name): [engine_core()]}, has_wan=False)


def environ(name: str) -> dict[str, str]:
    """Return settings by which all prompts of a layout are computed by the same engine, on one core."""
    threshold = 1_000_000 if name == ONE_ENGINE else 0
    return {
        "PRFAAS_THREADS": "1",
        "PRFAAS_ROUTING_POLICY": "threshold",
        "PRFAAS_DECODE_THRESHOLD_TOKENS": str(threshold),
        "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "1000000",
    }
