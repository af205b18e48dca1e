"""The emptiest prefill worker anywhere: what load balancers without an eye for caches do."""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, least_loaded, ranked


@dataclass(frozen=True, slots=True)
class LeastLoad:
    """Prefills on the worker with the fewest requests, in whichever datacenter; the cached prefix breaks ties.

    A prompt whose prefix is being computed for another request follows that one all the same.
    """

    def decide(self, facts: Facts) -> Decision:
        order = ranked(-facts.following, facts.prefill.rows["requests"], -facts.longest_prefix)
        return Decision(least_loaded(facts), order)
