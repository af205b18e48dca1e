"""The less loaded of two workers that chance names: the power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001)."""

from dataclasses import dataclass

from services.gateway.cluster.workers import Rows
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, ranked, turn


@dataclass(frozen=True, slots=True)
class TwoChoices:
    """Compares the requests of two decode workers, and of two prefill workers of any datacenter.

    News that is late misleads it less than a policy that compares all workers: two gateways seldom draw the same two.
    """

    def decide(self, facts: Facts) -> Decision:
        decode, rest = _better_of_two(facts.decode.rows, facts.request.draw)
        if not len(facts.prefill):
            return Decision(decode)
        best, _ = _better_of_two(facts.prefill.rows, rest)
        return Decision(decode, ranked(turn(len(facts.prefill), best)))


def _better_of_two(rows: Rows, draw: float) -> tuple[int, float]:
    """Return a row, and what is left of the draw. The second row differs from the first if there is another."""
    num = len(rows)
    first, rest = drawn(draw, num)
    step, rest = drawn(rest, max(1, num - 1))
    second = (first + 1 + step) % num
    return (second if rows["requests"][second] < rows["requests"][first] else first), rest
