"""All ways to serve a request, each with its forecast, as arrays.

Times run from now. A prompt is *handed over* when a prefill worker computes it and KV streams to decode layer by layer,
or *decode alone* computes what no cache has. Both use a cached prefix, which is gathered first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.calibration import Correction, prior_of
from services.gateway.routing.costs.others import delay_of_later_s, delay_on_way_s, on_shared_way, stall_s
from services.gateway.routing.costs.steps import (
    Seconds,
    Tokens,
    admission_s,
    prefill_s,
    prompt_only_s,
    step_in_hand_s,
    step_s,
    tail_s,
    turn_s,
)
from services.gateway.routing.costs.transfer import (
    Gathering,
    PrefixUse,
    Transfers,
    everybody,
    near,
)
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import Forecast, LinkUse, PlanKind
from services.gateway.routing.policy import Decision
from shared.ids import Datacenter

CROWD_S = 0.1
"""What a request of a decode worker weighs when one is chosen for a tail: the emptiest has its batch full last."""

RowNumbers = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Ways that differ in one worker: decode workers for decode alone, prefill workers for a hand-over."""

    is_handed_over: bool
    decode: RowNumbers  # [n], rows of `facts.decode`
    uses: Sequence[PrefixUse]  # of each datacenter that computes, by its number
    dc: RowNumbers  # [n], which datacenter computes
    model_s: Seconds  # [n]: until the first token, by the model alone
    ttft_s: Seconds  # [n]: the same, corrected
    time_per_output_token_s: Seconds  # [n]
    others_s: Seconds  # [n]: what others wait longer, together
    prefill_s: Seconds  # [n]
    decode_s: Seconds  # [n]
    fetch_after_s: Seconds  # [n]: when decode asks for the blocks
    crossings: Sequence[tuple[LinkUse, ...]]  # of each datacenter that computes

    def use(self, at: int) -> PrefixUse:
        return self.uses[int(self.dc[at])]

    def forecast(self, facts: Facts, at: int) -> Forecast:
        """Return what is expected of one of these ways."""
        num_tokens, block_tokens = facts.request.num_tokens, facts.layout.block_tokens
        first = min(self.use(at).num_blocks * block_tokens, num_tokens - 1)
        start = max(first, facts.num_enough * block_tokens) if self.is_handed_over else first
        return Forecast(
            ttft_s=float(self.ttft_s[at]),
            model_s=float(self.model_s[at]),
            time_per_output_token_s=float(self.time_per_output_token_s[at]),
            prefill_s=float(self.prefill_s[at]),
            prefill_tokens=start - first,
            decode_s=float(self.decode_s[at]),
            decode_tokens=num_tokens - min(start, num_tokens - 1),
            crossings=self.crossings[self.dc[at]],
            fetch_after_s=float(self.fetch_after_s[at]),
        )


def on_decode(transfers: Transfers, uses: Sequence[PrefixUse]) -> list[Candidates]:
    """Return, for each use of the cached prefix, the forecast of each decode worker that computes what that leaves.

    All are computed together, `[uses, workers]`.
    """
    facts = transfers.facts
    rows, num_tokens = facts.decode.rows, facts.request.num_tokens
    first = np.array([[min(use.num_blocks * facts.layout.block_tokens, num_tokens - 1)] for use in uses])
    computing = tail_s(rows, first, num_tokens)
    gathered = [transfers.gathering(facts.home, use) for use in uses]
    moved = np.array([_moved(facts, use.num_blocks) for use in uses])
    landed = np.array([[one.seconds] for one in gathered]) + moved / rows["hand_over_bytes_per_s"]
    waiting = turn_s(rows, first, num_tokens, facts.layout.block_tokens) + admission_s(rows, num_tokens)
    kinds: list[PlanKind] = ["none" if use.num_blocks >= facts.num_enough else "decode_only" for use in uses]
    corrections = [_correction(facts, kind, facts.home) for kind in kinds]
    model_s = _gated(facts, waiting, landed, computing)
    others_s = _decode_others_s(facts, rows, first, computing)
    per_token_s, fetch_after_s = step_s(rows, 1, num_tokens), step_in_hand_s(rows)
    numbers, nothing, dc, num_dcs = np.arange(len(rows)), np.zeros(len(rows)), rows["dc"], len(facts.dcs)
    return [
        Candidates(
            is_handed_over=False,
            decode=numbers,
            uses=[use] * num_dcs,
            dc=dc,
            model_s=model_s[i],
            ttft_s=corrections[i].offset_s + corrections[i].factor * model_s[i],
            time_per_output_token_s=per_token_s,
            others_s=others_s[i],
            prefill_s=nothing,
            decode_s=computing[i],
            fetch_after_s=fetch_after_s,
            crossings=[gathered[i].crossings] * num_dcs,
        )
        for i, use in enumerate(uses)
    ]


def handed_over(
    transfers: Transfers, uses: Sequence[Sequence[PrefixUse]], decode: int | None = None
) -> list[Candidates]:
    """Return the forecast of each prefill worker, with a decode worker: the first to be done with the tail, unless
    given. Each of `uses` is what each datacenter makes of the cached prefix; all are computed together,
    `[uses, workers]`.

    The maker's pool gathers the prefix while the prompt waits. What home lacks crosses while the rest is computed: it
    is there when the last piece has crossed after the last layer, or when the link has carried all that was asked for
    before and this.
    """
    facts = transfers.facts
    rows, layout, num_tokens = facts.prefill.rows, facts.layout, facts.request.num_tokens
    dc, end = rows["dc"], facts.num_enough * layout.block_tokens
    makers = [[_Maker.of(transfers, *one) for one in zip(facts.dcs, of_dcs, strict=True)] for of_dcs in uses]
    figures = np.array([[maker.figures for maker in of_dcs] for of_dcs in makers])
    gathered, num_blocks, last_s_of_whole, latest, offset, factor = np.moveaxis(figures.take(dc, axis=1), -1, 0)
    first = np.minimum(np.maximum(num_blocks, facts.following) * layout.block_tokens, end)
    computing = prefill_s(rows, first, end)
    worker = _decode_for_tail(facts, end) if decode is None else decode
    decoder = facts.decode.rows[worker : worker + 1]
    num_pieces = np.maximum(1.0, np.ceil((end - first) / rows["step_tokens"])) * layout.num_layers
    moved = layout.resume_bytes(0, facts.num_enough)
    handing_s = moved / rows["hand_over_bytes_per_s"] + moved / decoder["hand_over_bytes_per_s"] + last_s_of_whole
    computed = np.maximum(rows["queued_s"], gathered) + computing
    fetch_after_s = step_in_hand_s(decoder)
    crossed = np.where(latest > 0, fetch_after_s + latest * on_shared_way(rows, last_s_of_whole), 0.0)
    landed = np.maximum(computed + handing_s / num_pieces, crossed)
    tail = tail_s(decoder, end, num_tokens)
    waiting = turn_s(decoder, end, num_tokens, layout.block_tokens) + admission_s(decoder, num_tokens)
    model_s = _gated(facts, waiting, landed, tail)
    ttft_s = offset + factor * model_s
    others_s = (
        delay_of_later_s(rows, computing)
        + delay_on_way_s(rows, last_s_of_whole, latest)
        + _decode_others_s(facts, facts.decode.rows, end, tail_s(facts.decode.rows, end, num_tokens))[worker]
    )
    of_decoder = step_s(decoder, 1, num_tokens), tail, fetch_after_s
    per_token_s, decode_s, fetching_s = (np.repeat(figure, len(rows)) for figure in of_decoder)
    decoders = np.full(len(rows), worker)
    return [
        Candidates(
            is_handed_over=True,
            decode=decoders,
            uses=of_dcs,
            dc=dc,
            model_s=model_s[i],
            ttft_s=ttft_s[i],
            time_per_output_token_s=per_token_s,
            others_s=others_s[i],
            prefill_s=computing[i],
            decode_s=decode_s,
            fetch_after_s=fetching_s,
            crossings=[maker.crossings for maker in makers[i]],
        )
        for i, of_dcs in enumerate(uses)
    ]


@dataclass(frozen=True, slots=True)
class _Maker:
    """What holds for all prefill workers of a datacenter."""

    figures: tuple[float, float, float, float, float, float]
    crossings: tuple[LinkUse, ...]

    @classmethod
    def of(cls, transfers: Transfers, maker: Datacenter, use: PrefixUse) -> "_Maker":
        """Return when its pool has the prefix, of how many blocks; what the way home takes for all of them, and when
        they are there at the earliest; and the correction of such plans.
        """
        facts = transfers.facts
        gathered = transfers.gathering(maker, use)
        kind: PlanKind = "local" if maker == facts.home else "remote"
        way_s, latest, crossings = 0.0, 0.0, gathered.crossings
        if maker != facts.home:
            num_bytes = transfers.lacking_bytes(facts.home, facts.num_enough)
            way = transfers.way(maker, facts.home)
            way_s, latest = num_bytes / way.bytes_per_s, way.crossing_s(num_bytes)
            gathered = Gathering(gathered.seconds + way.round_trip_s, ())
            crossings = (*crossings, LinkUse(maker, facts.home, num_bytes))
        correction = _correction(facts, kind, maker)
        return cls((gathered.seconds, use.num_blocks, way_s, latest, *correction), crossings)


def every_way(facts: Facts) -> list[Candidates]:
    """Return all ways to serve a request.

    A part of the prefix may be far: then what everybody has is compared with what home and the maker have, which moves
    fewer bytes and computes more tokens.
    """
    whole = everybody(facts)
    is_far = (bool(whole.num_blocks) and len(whole.pull_from) > 1) or not whole.pull_from <= {facts.home}
    alone = [whole, near(facts, facts.home)] if is_far else [whole]
    transfers = Transfers(facts)
    ways = _alone(transfers, alone)
    if facts.is_cached or not len(facts.prefill):
        return ways
    uses = [[whole] * len(facts.dcs)]
    own = [near(facts, maker) for maker in facts.dcs] if is_far else []
    if any(use.num_blocks < whole.num_blocks for use in own):
        uses.append(own)
    return ways + handed_over(transfers, uses)


def forecast_of(facts: Facts, decision: Decision) -> Forecast:
    """Return what is expected of a decision, whichever policy has taken it: metrics, admission and bookkeeping rest on
    it. `facts` have the caches that the decision uses.
    """
    use, transfers = everybody(facts), Transfers(facts)
    if facts.is_cached or not decision.prefill:
        return _alone(transfers, [use])[0].forecast(facts, decision.decode)
    (handed,) = handed_over(transfers, [[use] * len(facts.dcs)], decision.decode)
    return handed.forecast(facts, decision.prefill[0])


def alone_s(facts: Facts, decision: Decision) -> float:
    """Return when decode would have its first token with nothing from elsewhere.

    Infinite while it, or the prefill worker that it would do without, has not measured itself.
    """
    workers = [facts.decode.rows[decision.decode], *(facts.prefill.rows[row] for row in decision.prefill[:1])]
    if not all(row["is_measured"] for row in workers):
        return np.inf
    (alone,) = _alone(Transfers(facts), [near(facts, facts.home)])
    return float(alone.ttft_s[decision.decode])


def _alone(transfers: Transfers, uses: Sequence[PrefixUse]) -> list[Candidates]:
    """Return `on_decode`, computed once for each use."""
    known = transfers.facts.worked_out
    if new := [use for use in uses if ("alone", use) not in known]:
        known.update(zip((("alone", use) for use in new), on_decode(transfers, new), strict=True))
    return [known["alone", use] for use in uses]


def _moved(facts: Facts, num_blocks: int) -> NDArray[np.float64]:
    """Return the bytes of a prefix that each decode worker takes from its pool: what its device has it does not."""
    on_device, layout = facts.on_device, facts.layout
    moved = np.full(len(on_device), layout.resume_bytes(0, num_blocks))
    for row in np.flatnonzero(on_device):
        moved[row] = layout.resume_bytes(min(int(on_device[row]), num_blocks), num_blocks)
    return moved


def _decode_for_tail(facts: Facts, end: int) -> int:
    """Return the decode worker for a prompt that is handed over up to `end`: the first to be done with its tail."""
    rows, num_tokens = facts.decode.rows, facts.request.num_tokens
    if len(rows) == 1:
        return 0
    tail = tail_s(rows, end, num_tokens)
    waiting = turn_s(rows, end, num_tokens, facts.layout.block_tokens) + admission_s(rows, num_tokens)
    seconds = waiting + tail + step_s(rows, 1, num_tokens)
    return int(np.argmin(seconds + CROWD_S * rows["requests"]))


def _gated(facts: Facts, waiting: Seconds, landed: Seconds, computing: Seconds) -> Seconds:
    """Return when a tail is computed whose layers open as they land: the last layer waits for the last entry."""
    return np.asarray(np.maximum(waiting + computing, landed + computing / facts.layout.num_layers))


def _decode_others_s(facts: Facts, rows: np.ndarray, first: float | Tokens, computing: Seconds) -> Seconds:
    prompt = prompt_only_s(rows, first, facts.request.num_tokens)
    return delay_of_later_s(rows, computing) + stall_s(rows, prompt)


def _correction(facts: Facts, kind: PlanKind, dc: Datacenter) -> Correction:
    return facts.corrections.get((kind, dc)) or prior_of(kind)
