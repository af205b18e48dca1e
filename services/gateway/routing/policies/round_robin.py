"""Workers in turn, wherever they are: the least that a load balancer does, for comparison."""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, ranked, turn


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Takes the next decode worker and the next prefill worker for each plan of a gateway."""

    def decide(self, facts: Facts) -> Decision:
        number, num_prefill = facts.request.number, len(facts.prefill)
        order = ranked(turn(num_prefill, number % max(1, num_prefill)))
        return Decision(number % len(facts.decode), order)
