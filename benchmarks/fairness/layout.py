"""The processes that the tenants share, their cores, and what they get of these, whatever else the machine does."""

import os

from benchmarks.wan.suite import Layout

FIRST = ("broker-west", "cachepool-west")
GATEWAY = "gateway-west"
ONE_ENGINE, TWO_ENGINES, TWO_DECODES = "decode alone", "prefill and decode", "two decodes"
LAYOUTS = {
    ONE_ENGINE: (*FIRST, "decode-west", GATEWAY),
    TWO_ENGINES: (*FIRST, "prefill-west", "decode-west", GATEWAY),
    TWO_DECODES: (*FIRST, "decode-west", "decode-second-west", GATEWAY),
}

BESIDE_ALL_ELSE = 0.7
"""Of a core's time, for an engine whose core all else has to use, too: as much whether that is busy or not."""


def computing_engines(name: str) -> tuple[str, ...]:
    """Return the engines that compute the prompts of a layout."""
    engines = tuple(process for process in LAYOUTS[name] if process.startswith("prefill"))
    return engines or tuple(process for process in LAYOUTS[name] if process.startswith("decode"))


def engine_cores(name: str) -> dict[str, int]:
    """Return the core of each engine that computes prompts: they share none while there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    return {engine: cores[number % len(cores)] for number, engine in enumerate(computing_engines(name))}


def other_cores(name: str) -> list[int]:
    """Return the cores of all else, the tenants included: those that no engine has, or all of them."""
    cores = os.sched_getaffinity(0)
    return sorted(cores - set(engine_cores(name).values()) or cores)


def layout(name: str) -> Layout:
    """Return one of `LAYOUTS`, on one host. What it gets of its cores does not depend on other programs."""
    cores, rest = engine_cores(name), other_cores(name)
    shares = dict.fromkeys(LAYOUTS[name], 1.0)
    shares |= {engine: BESIDE_ALL_ELSE for engine, core in cores.items() if core in rest}
    own = {process: [cores[process]] if process in cores else rest for process in LAYOUTS[name]}
    return Layout(names=LAYOUTS[name], cores=own, shares=shares, has_wan=False)


def environ(name: str) -> dict[str, str]:
    """Return settings by which engines use one core, and by which a prefill worker computes all prompts."""
    settings = {"PRFAAS_THREADS": "1"}
    if name == TWO_ENGINES:
        settings |= {
            "PRFAAS_ROUTING_POLICY": "threshold",
            "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",
            "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "1000000",
        }
    return settings
