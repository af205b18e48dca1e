"""Draw tokens at random: temperature, min-p, top-k and top-p of all rows in one set of operations.

A row's draw is the same, to the bit, at any place of any batch and on any device that rounds `exp` the same way.
Probabilities are therefore weights of whole numbers, in float64 and small enough that no sum of them rounds: sums do
not depend on how a device splits them up. And ties of logits are broken by the lower id.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.sampling.params import SamplingParams, uniform

_VIEWS = (512, 8192)
"""Top-k and top-p look at as many of the best tokens first: to sort a whole vocabulary takes far longer."""

_EXACT_BITS = 53  # of a float64's integers


@dataclass(frozen=True)
class _Rows:
    """Rows in hand with their parameters, each `[rows, 1]` float64."""

    logits: Tensor  # [rows, vocab_size] float32
    best: Tensor
    temperature: Tensor
    min_p: Tensor
    top_k: Tensor  # vocab_size where it is off
    top_p: Tensor
    number: Tensor  # from [0, 1): what the draw hits

    def take(self, rows: Tensor) -> "_Rows":
        return _Rows(*(column[rows] for column in vars(self).values()))


def draw(logits: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> Tensor:
    """Return one id `[rows]` per row of `logits` `[rows, vocab_size]` float32; no row may be greedy.

    (seed, position) fixes the number that a draw hits in the cumulative distribution of what the filters leave.
    """
    vocab_size = logits.shape[1]
    columns = torch.tensor(
        [
            (p.temperature, p.min_p, min(p.top_k or vocab_size, vocab_size), p.top_p, uniform(p.seed, position))
            for p, position in zip(params, positions, strict=True)
        ],
        dtype=torch.float64,
        device=logits.device,
    )
    best = logits.amax(dim=-1, keepdim=True).double()
    rows = _Rows(logits, best, *columns.unsqueeze(-1).unbind(dim=1))
    chosen = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    filtered = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size or p.top_p < 1]
    free = sorted(set(range(len(params))).difference(filtered))
    for picked, how in ((free, _draw_free), (filtered, _draw_filtered)):
        if picked:
            index = torch.tensor(picked, device=logits.device)
            chosen[index] = how(rows if len(picked) == len(params) else rows.take(index))
    return chosen


def _draw_free(rows: _Rows) -> Tensor:
    cumulative = _weights(rows, rows.logits).cumsum(dim=-1)
    return _hit(cumulative, cumulative[:, -1:], rows.number).squeeze(1)


def _draw_filtered(rows: _Rows) -> Tensor:
    """Widen the view for the rows that it cannot settle yet, at last to the vocabulary; the outcome is the same."""
    vocab_size = rows.logits.shape[1]
    chosen = torch.empty(len(rows.logits), dtype=torch.int64, device=rows.logits.device)
    left = torch.arange(len(chosen), device=chosen.device)
    for width in (*(view for view in _VIEWS if view < vocab_size), vocab_size):
        chosen[left], settled = _draw_among_best(rows, width)
        unsettled = (~settled).nonzero().flatten()
        if width == vocab_size or len(unsettled) == 0:
            break
        left, rows = left[unsettled], rows.take(unsettled)
    return chosen


def _draw_among_best(rows: _Rows, width: int) -> tuple[Tensor, Tensor]:
    """Return ids, and for which rows the best `width` tokens are known to hold all that the filters leave."""
    values, ids = best_tokens(rows.logits, width)
    weights = _weights(rows, values)
    cumulative = weights.cumsum(dim=-1)
    top_k_total = cumulative.gather(1, (rows.top_k.long() - 1).clamp(max=width - 1))
    is_known = rows.top_k <= width
    total = top_k_total if bool(is_known.all()) else torch.where(is_known, top_k_total, _total(rows))
    # Keep a token while those before it fall short of top_p of what top_k leaves: the first is always kept.
    kept = (torch.arange(width, device=ids.device) < rows.top_k) & (cumulative - weights < rows.top_p * total)
    last = kept.sum(dim=-1, keepdim=True) - 1
    index = _hit(cumulative, cumulative.gather(1, last), rows.number)
    # Below the last value of the view there may be ties with it: only what is above has all its equals in view.
    settled = (values.gather(1, last) > values[:, -1:]) & (is_known | (rows.top_k == rows.logits.shape[1]))
    return ids.gather(1, index).squeeze(1), settled.squeeze(1)


def best_tokens(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the greatest `width` values of each row and their ids, `[rows, width]`, best first, ties by lower id."""
    if width < logits.shape[1]:
        values, ids = logits.topk(width, dim=-1, sorted=False)
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
        return values, ids.gather(1, order)
    return logits.sort(dim=-1, descending=True, stable=True)


def _total(rows: _Rows) -> Tensor:
    return _weights(rows, rows.logits).sum(dim=-1, keepdim=True)


def _weights(rows: _Rows, logits: Tensor) -> Tensor:
    """Return whole numbers in proportion to the probabilities that temperature and min-p leave to `logits`.

    The best token's is 2^(53 - bits of the vocabulary): 2^35 for 262,144 tokens, whose sum is still exact.
    """
    weights = logits.double().sub_(rows.best).div_(rows.temperature).exp_()
    weights.masked_fill_(weights < rows.min_p, 0)
    bits = _EXACT_BITS - (rows.logits.shape[1] - 1).bit_length()
    return weights.mul_(2.0**bits).floor_()


def _hit(cumulative: Tensor, total: Tensor, number: Tensor) -> Tensor:
    """Return the first index `[rows, 1]` whose cumulative weight exceeds `number` of `total`."""
    found = torch.searchsorted(cumulative, (number * total).floor_(), right=True)
    return found.clamp_(max=cumulative.shape[1] - 1)
