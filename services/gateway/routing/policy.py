"""The seam of routing: a policy decides which workers serve a request; all else follows from facts."""

from collections.abc import Sequence
from typing import Protocol

from services.gateway.cluster.registry import Member
from services.gateway.routing.facts import Facts
from shared.ids import Datacenter


class RoutingPolicy(Protocol):
    """Pure: both methods depend on their arguments alone and change nothing, so that a simulator can run them too."""

    def pick_decode(self, able: Sequence[Member], home: Datacenter) -> Member:
        """Return the decode worker. `able` are those that can serve the request, at least one; `home` is the gateway's
        datacenter.
        """

    def rank_prefill(self, facts: Facts) -> Sequence[Member]:
        """Return workers of `facts.prefill`, the best first; none: decode computes the prompt alone.

        Asked only when something is left to compute. The plan is for the first worker; the others of its datacenter
        take over, in this order, when it is lost.
        """


def least_loaded_at_home(able: Sequence[Member], home: Datacenter) -> Member:
    """Return the decode worker with the fewest requests, in the home datacenter if there is one."""
    at_home = [member for member in able if member.dc == home]
    return min(at_home or able, key=lambda member: (member.load, member.worker))
