"""The suite that is simulated: a prefill worker in each datacenter, one decode worker, one gateway."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, wan
from benchmarks.wan.share import held_to
from benchmarks.wan.suite import EAST, WEST, Layout, WanSuite, log_folder, wan_suite
from shared.kv.layout import Dtype

REMOTE, LOCAL, DECODE, GATEWAY = f"prefill-{EAST}", f"prefill-{WEST}", f"decode-{WEST}", f"gateway-{WEST}"

SHARES = {REMOTE: 0.42, LOCAL: 0.33}
"""Of the first core, for the two prefill workers: neither notices the other, and a quarter is left for what the kernel
needs to be punctual. So a prompt takes as long whatever the other worker does. Decode is on another core, before
pools, gateway, broker and WAN, which need little."""

SHARED_PERIOD_US = 50_000
"""Short against a step, long against the kernel's ticks."""

LINE = Line(0.015, 12.5e6)
"""100 Mbit/s: the KV of a prompt takes a tenth of the time that the prompt takes."""

OFFLOAD_TOKENS = 128
"""Policy `threshold`: shorter prompts are prefilled at home, all others away. Decode computes the ends of prompts."""

BLOCK_TOKENS = 64
DTYPE: Dtype = "bfloat16"

POLICIES = ("threshold", "cost")


def environ(policy: str) -> dict[str, str]:
    """Return the settings of all processes."""
    return {
        "PRFAAS_DTYPE": DTYPE,
        "PRFAAS_THREADS": "1",
        "PRFAAS_BLOCK_TOKENS": str(BLOCK_TOKENS),
        "PRFAAS_CODEC": "raw",
        "PRFAAS_REQUEST_TIMEOUT_S": "300",
        # The simulator has no admission, and computes whole chunks beside a batch.
        "PRFAAS_DISPATCH_WINDOW_S": "0",
        "PRFAAS_INTER_TOKEN_S": "60",
        "PRFAAS_ROUTING_POLICY": policy,
        "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": str(OFFLOAD_TOKENS),
        "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",
    }


def layout() -> Layout:
    """Return the processes. All of them come before whatever else the machine does."""
    names = (f"broker-{WEST}", f"cachepool-{EAST}", f"cachepool-{WEST}", REMOTE, LOCAL, DECODE, GATEWAY)
    return Layout(names=names, shares={name: SHARES.get(name, 1.0) for name in names}, period_us=SHARED_PERIOD_US)


@contextmanager
def sites(policy: str, logs: Path | None) -> Iterator[tuple[Wan, WanSuite]]:
    """Start the suite; this thread is in the west meanwhile. Raises `WanUnavailable`."""
    with ExitStack() as groups, wan([EAST, WEST], LINE) as network:
        groups.enter_context(held_to(network.pid, 1.0))
        with (
            log_folder(logs) as folder,
            network.inside(WEST),
            wan_suite(network, folder, layout(), **environ(policy)) as suite,
        ):
            yield network, suite
