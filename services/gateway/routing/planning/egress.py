"""Which link a prefill cluster needs: equation (2) for models of which only the KV throughput is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.planning.case import WideLink
from services.gateway.routing.planning.profiles import LengthProfile, require_positive


@dataclass(frozen=True, slots=True)
class EgressDemand:
    """What one model asks of a link, by prompt length. Every array is [lengths].

    An instance never sends faster than it computes, so that its KV throughput is the link's share that it needs. A mix
    of lengths needs a rate between the least and the highest of its lengths: E[S_kv] / E[T_prefill] is their mean, each
    weighted by its time.
    """

    model: str
    tokens: NDArray[np.float64]
    instance_gbit_s: NDArray[np.float64]  # (1)
    cluster_gbit_s: NDArray[np.float64]  # (2)
    carried_instances: NDArray[np.float64]  # that the link can serve, whole ones
    is_carried: bool  # whether the link carries the cluster at every length

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON has them."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(self).items()
        }


def egress_demand(
    model: str, kv_gbit_s: LengthProfile, tokens: Sequence[float], instances: int, link: WideLink
) -> EgressDemand:
    """Work out (2) for prompts of each length. Raises ValueError for a profile that is not positive there."""
    at = np.array(tokens, np.float64)
    require_positive(kv_gbit_s, at)
    each, usable = kv_gbit_s(at), link.usable_gbit_s
    needed = instances * each
    return EgressDemand(model, at, each, needed, np.floor(usable / each), bool((needed <= usable).all()))
