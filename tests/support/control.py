"""The paper's clusters as a gateway sees them: workers with measured steps, requests that it has observed."""

from typing import Any

import numpy as np

from services.gateway.cluster.links import Links
from services.gateway.cluster.view import RegistryView
from services.gateway.control.case import PlanningTerms
from services.gateway.control.observed import Observed
from services.gateway.control.ways import LinkTerms
from shared.ids import Datacenter
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.members import member, workers

WEST, EAST, NORTH = DCS = (Datacenter("west"), Datacenter("east"), Datacenter("north"))
GBIT = 125e6
H20 = 2.4
"""How much slower the paper's H20 prefill than its H200."""

LAYOUT = KvLayout(tuple(LayerSpec(None, 4, 67) for _ in range(8)), "float32", 64)  # 17,152 bytes a token
TERMS = PlanningTerms(
    home=WEST,
    layout=LAYOUT,
    links=LinkTerms("raw", 1.25e9),
    time_per_output_token_s=0.025,
    max_batch=64,
    target_utilisation=0.7,
)
H200_STEP = {"base_s": 0.389, "token_s": 0.04206 / 1024, "pair_s": 2 * 9.94e-5 / 1024**2, "step_tokens": 1e6}
DECODE_STEP = {"base_s": 0.005, "row_s": 0.001, "context_s": 0.0}  # 20 requests in 25 ms


def cluster(num_east: int = 4, num_prefill: int = 3, num_decode: int = 5, **changes: Any) -> RegistryView:
    """Prefill on H200 in the east and on H20 in the west, where requests are decoded; 100 Gbit/s between them.

    `changes` are columns of all workers.
    """
    makers = [member(f"east-{n}", EAST) for n in range(num_east)]
    makers += [member(f"west-{n}", WEST) for n in range(num_prefill)]
    slower = np.array([1.0] * num_east + [H20] * num_prefill)
    prefill = {name: (value * slower if name != "step_tokens" else value) for name, value in H200_STEP.items()}
    decoders = [member(f"decode-{n}", WEST) for n in range(num_decode)]
    links = Links.unknown(len(DCS))
    links.goodput_bytes_per_s[:] = 100 * GBIT
    common = {"profile_steps": 1000.0, **changes}
    return RegistryView(
        DCS,
        workers(DCS, decoders, **{**DECODE_STEP, **common}),
        workers(DCS, makers, **{**prefill, **common}),
        links=links,
    )


def requests(num: int = 4096, per_s: float = 2.0, **changes: Any) -> Observed:
    """Requests with the paper's lengths, none of them cached."""
    rng = np.random.default_rng(7)
    tokens = np.exp(rng.normal(9.90, 1.0, 4 * num + 64))
    tokens = np.round(tokens[(tokens >= 128) & (tokens <= 131072)][:num])
    figures: dict[str, Any] = {
        "prompt_tokens": tokens,
        "uncached_tokens": tokens,
        "output_tokens": np.full(num, 1024.0),
        "requests_per_s": per_s,
    }
    return Observed(**{**figures, **changes})
