"""All ways to serve a request, each with its forecast, as arrays.

Times run from now. A prompt is *handed over* when a prefill worker computes it and KV streams to decode layer by layer,
or *decode alone* computes what no cache has. Both use a cached prefix, which is gathered first.
"""

from dataclasses import dataclass

import numpy as np

from services.gateway.routing.calibration import prior_of
from services.gateway.routing.costs.others import delay_of_later_s, stall_s
from services.gateway.routing.costs.steps import (
    Seconds,
    memory_wait_s,
    prefill_s,
    prompt_only_s,
    step_s,
    tail_s,
)
from services.gateway.routing.costs.transfer import PrefixUse, gathering, kv_bytes, lacking_bytes, way_cost
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import Forecast, LinkUse, PlanKind
from services.gateway.routing.policy import Decision
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Ways that differ in one worker only: decode workers for decode alone, prefill workers for a hand-over."""

    kind: PlanKind
    use: PrefixUse
    rows: np.ndarray  # [n], of `facts.decode` or `facts.prefill`
    decode: np.ndarray  # [n], rows of `facts.decode`
    ttft_s: Seconds  # [n]
    time_per_output_token_s: Seconds  # [n]
    others_s: Seconds  # [n]: what others wait longer, together
    prefill_s: Seconds  # [n]
    decode_s: Seconds  # [n]
    crossings: tuple[LinkUse, ...]

    def forecast(self, facts: Facts, at: int) -> Forecast:
        """Return what is expected of one of these ways."""
        num_tokens = facts.request.num_tokens
        first = min(self.use.num_blocks * facts.layout.block_tokens, num_tokens - 1)
        is_handed_over = self.kind in ("local", "remote")
        start = max(first, facts.num_enough * facts.layout.block_tokens) if is_handed_over else first
        return Forecast(
            ttft_s=float(self.ttft_s[at]),
            time_per_output_token_s=float(self.time_per_output_token_s[at]),
            prefill_s=float(self.prefill_s[at]),
            prefill_tokens=max(0, start - first) if is_handed_over else 0,
            decode_s=float(self.decode_s[at]),
            decode_tokens=num_tokens - min(start, num_tokens - 1),
            crossings=self.crossings,
        )


def on_decode(facts: Facts, use: PrefixUse) -> Candidates:
    """Return the forecast of each decode worker that computes what the cached prefix leaves."""
    rows, home, num_tokens = facts.decode.rows, facts.home, facts.request.num_tokens
    first = min(use.num_blocks * facts.layout.block_tokens, num_tokens - 1)
    computing = tail_s(rows, first, num_tokens)
    gathered = gathering(facts, home, use.num_blocks, use.pull_from)
    landed = gathered.seconds + kv_bytes(facts.layout, 0, use.num_blocks) / rows["hand_over_bytes_per_s"]
    waiting = rows["queued_s"] + memory_wait_s(rows, num_tokens)
    kind: PlanKind = "none" if use.num_blocks >= facts.num_enough else "decode_only"
    ttft = _gated(facts, waiting, landed, computing)
    everybody = np.arange(len(rows))
    return Candidates(
        kind=kind,
        use=use,
        rows=everybody,
        decode=everybody,
        ttft_s=_corrected(facts, kind, home, ttft),
        time_per_output_token_s=step_s(rows, 1, num_tokens),
        others_s=_decode_others_s(facts, first, computing),
        prefill_s=np.zeros(len(rows)),
        decode_s=computing,
        crossings=gathered.crossings,
    )


def handed_over(facts: Facts, maker: Datacenter, use: PrefixUse, decode: int | None = None) -> Candidates:
    """Return the forecast of each prefill worker of a datacenter, with a decode worker: the best, unless given.

    The maker's pool gathers the prefix while the prompt waits. What home lacks crosses while the rest is computed: it
    is there when the last piece has crossed after the last layer, or when the link has carried all that was asked for
    before and this.
    """
    chosen = np.flatnonzero(facts.prefill.rows["dc"] == facts.dcs.index(maker))
    rows, layout, home = facts.prefill.rows[chosen], facts.layout, facts.home
    end = facts.num_enough * layout.block_tokens
    first = np.maximum(use.num_blocks, facts.following[chosen]) * layout.block_tokens
    computing = prefill_s(rows, np.minimum(first, end).astype(float), end)
    gathered = gathering(facts, maker, use.num_blocks, use.pull_from)
    computed = np.maximum(rows["queued_s"], gathered.seconds) + computing
    num_pieces = np.maximum(1.0, np.ceil((end - first) / rows["step_tokens"])) * layout.num_layers
    moved = kv_bytes(layout, 0, facts.num_enough)
    there = computed + moved / rows["hand_over_bytes_per_s"] / num_pieces
    crossings = gathered.crossings
    if maker != home:
        crossing = lacking_bytes(facts, home, facts.num_enough)
        way = way_cost(facts, maker, home)
        last = crossing / way.bytes_per_s / num_pieces + way.round_trip_s
        there = np.maximum(there + last, way.crossing_s(crossing))
        crossings = (*crossings, LinkUse(maker, home, crossing))
    decode = _decode_for_tail(facts, end) if decode is None else decode
    worker = facts.decode.rows[decode : decode + 1]
    tail = tail_s(worker, end, facts.request.num_tokens)
    landed = there + moved / worker["hand_over_bytes_per_s"] / num_pieces
    waiting = worker["queued_s"] + memory_wait_s(worker, facts.request.num_tokens)
    kind: PlanKind = "local" if maker == home else "remote"
    return Candidates(
        kind=kind,
        use=use,
        rows=chosen,
        decode=np.full(len(chosen), decode),
        ttft_s=_corrected(facts, kind, maker, _gated(facts, waiting, landed, tail)),
        time_per_output_token_s=np.repeat(step_s(worker, 1, facts.request.num_tokens), len(chosen)),
        others_s=delay_of_later_s(rows, computing) + _decode_others_s(facts, end, tail, decode),
        prefill_s=computing,
        decode_s=np.repeat(tail, len(chosen)),
        crossings=crossings,
    )


def forecast_of(facts: Facts, decision: Decision) -> Forecast:
    """Return what is expected of a decision. `facts` have the caches that the decision uses."""
    use = PrefixUse(facts.num_usable, frozenset(facts.credits))
    if facts.is_cached or not decision.prefill:
        return on_decode(facts, use).forecast(facts, decision.decode)
    row = decision.prefill[0]
    ways = handed_over(facts, facts.prefill[row].dc, use, decision.decode)
    return ways.forecast(facts, int(np.flatnonzero(ways.rows == row)[0]))


def _decode_for_tail(facts: Facts, end: int) -> int:
    """Return the decode worker for a prompt that is handed over up to `end`: the first to be done with its tail."""
    rows, num_tokens = facts.decode.rows, facts.request.num_tokens
    tail = tail_s(rows, end, num_tokens)
    seconds = rows["queued_s"] + memory_wait_s(rows, num_tokens) + tail + step_s(rows, 1, num_tokens)
    return int(np.argmin(seconds))


def _gated(facts: Facts, waiting: Seconds, landed: Seconds, computing: Seconds) -> Seconds:
    """Return when a tail is computed whose layers open as they land: the last layer waits for the last entry."""
    return np.asarray(np.maximum(waiting + computing, landed + computing / facts.layout.num_layers))


def _decode_others_s(facts: Facts, first: float, computing: Seconds, row: int | None = None) -> Seconds:
    rows = facts.decode.rows if row is None else facts.decode.rows[row : row + 1]
    prompt = prompt_only_s(rows, first, facts.request.num_tokens)
    return delay_of_later_s(rows, computing) + stall_s(rows, prompt)


def _corrected(facts: Facts, kind: PlanKind, dc: Datacenter, ttft: Seconds) -> Seconds:
    correction = facts.corrections.get((kind, dc)) or prior_of(kind)
    return np.asarray(correction.offset_s + correction.factor * ttft)
