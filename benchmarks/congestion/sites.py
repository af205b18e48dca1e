"""The suite that congestion is measured in: unequal workers, one of them held to a third of a core."""

import os

from benchmarks.wan.line import Line
from benchmarks.wan.suite import Layout

FAST_WORKER, SLOW_WORKER, DECODE = "prefill-east", "prefill-third-east", "decode-west"
SHARES = {SLOW_WORKER: 1 / 3, DECODE: 0.6}
"""Of a core's time. Decode is slower than the dense datacenter's workers, as in the paper: else nothing would leave."""

DELAY_S = 0.015
WIDE = Line(DELAY_S, 62.5e6)
NARROW = Line(DELAY_S, WIDE.rate_bytes_per_s / 10)


def gateways(number: int) -> tuple[str, ...]:
    """Return the names of so many gateways."""
    return ("gateway-west", "gateway-second-west")[:number]


def layout(num_gateways: int) -> Layout:
    """Return the processes. The fast worker has the first core; all else shares the others, the WAN included."""
    first, *others = sorted(os.sched_getaffinity(0))
    names = gateways(num_gateways)
    engines = ("cachepool-east", "cachepool-west", FAST_WORKER, SLOW_WORKER, DECODE)
    return Layout(
        names=("broker-west", *engines, *names),
        environ={name: {"PRFAAS_ROUTING_POLICY": "cost"} for name in names},
        cores={SLOW_WORKER: others or [first]},
        shares=SHARES,
    )
