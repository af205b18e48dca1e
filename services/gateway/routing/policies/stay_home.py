"""Prefill beside decode: for links that are slow, or dear, or not trusted with KV."""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, least_loaded, ranked


@dataclass(frozen=True, slots=True)
class StayHome:
    """Prefills in decode's datacenter, however long the prompt; elsewhere only while nobody at home can.

    At home a prompt follows the worker that computes its prefix already, then the longest cached prefix, then the least
    load.
    """

    def decide(self, facts: Facts) -> Decision:
        order = ranked(facts.is_away, -facts.following, -facts.longest_prefix, facts.prefill.rows["requests"])
        return Decision(least_loaded(facts), order)
