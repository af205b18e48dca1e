"""The suite that home is measured in: two prefill workers, a decode worker, and a gateway for each contestant."""

import os

from benchmarks.wan.line import Line
from benchmarks.wan.suite import Layout

ROUTER = "router"
FIXED = {
    "alone": {"PRFAAS_DECODE_THRESHOLD_TOKENS": "1000000"},
    "local": {"PRFAAS_DECODE_THRESHOLD_TOKENS": "0", "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "1000000"},
    "remote": {"PRFAAS_DECODE_THRESHOLD_TOKENS": "0", "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "0"},
}
"""The gateways that always do the same, and the thresholds that make them."""

ENGINES = ("prefill-east", "prefill-west", "decode-west")

HOME_SHARES = {"prefill-west": 0.7, "decode-west": 0.7}
"""Of a core's time. Engines at home are slower than in the dense datacenter, as in the paper: else none would leave."""

LINES: dict[str, Line | None] = {
    "no WAN": None,
    "wide WAN": Line(0.015, 125e6),
    "narrow WAN": Line(0.015, 12.5e6),
}
"""What may lie between the datacenters: nothing, for both are on one host, or 30 ms and 1 or 0.1 Gbit/s."""


def gateway_of(contestant: str) -> str:
    """Return the name of the process that a contestant is."""
    return "gateway-west" if contestant == ROUTER else f"gateway-{contestant}-west"


def layout(*, has_wan: bool) -> Layout:
    """Return the processes. The east is the dense datacenter: its prefill worker has the first core for itself.

    Each engine at home has a share of the others, beside pools, gateways and the WAN. One request runs at a time, so
    that the engines of home are not in each other's way.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    gateways = {"gateway-west": {"PRFAAS_ROUTING_POLICY": "cost"}} | {
        gateway_of(name): {"PRFAAS_ROUTING_POLICY": "threshold", **own} for name, own in FIXED.items()
    }
    return Layout(
        names=("broker-west", "cachepool-east", "cachepool-west", *ENGINES, *gateways),
        environ=gateways,
        cores={"prefill-west": others or [first]},
        shares=HOME_SHARES,
        has_wan=has_wan,
    )
