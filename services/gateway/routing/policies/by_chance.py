"""Workers by chance, wherever they are: what needs no news at all, for comparison."""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, ranked, turn


@dataclass(frozen=True, slots=True)
class ByChance:
    """Draws a decode worker and a prefill worker, each with the same probability."""

    def decide(self, facts: Facts) -> Decision:
        decode, rest = drawn(facts.request.draw, len(facts.decode))
        first, _ = drawn(rest, len(facts.prefill))
        return Decision(decode, ranked(turn(len(facts.prefill), first)))
