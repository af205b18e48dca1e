"""Choose the next token of each row. A row's choice depends on its logits, parameters and position alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.model.sampling_params import SamplingParams


@torch.inference_mode()
def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    forbidden: Sequence[Sequence[int]] | None = None,
) -> list[int]:
    """Return one token id per row of `logits` `[rows, vocab_size]` float32.

    `positions` are those of the tokens to be chosen, in their sequences; with the seed they fix the random number, so
    that a row gets the same token in any batch and on any worker. `forbidden` are ids that a row must not get (the
    end-of-sequence ids before `min_tokens`). Changes `logits` in place when there are any.
    """
    for row, ids in enumerate(forbidden or ()):
        if ids:
            logits[row, list(ids)] = float("-inf")
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    for row, (wanted, position) in enumerate(zip(params, positions, strict=True)):
        if not wanted.greedy:
            chosen[row] = _draw(logits[row], wanted, uniform(wanted.seed, position))
    return chosen


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that (seed, position) fixes: Philox 4x64 keyed by one, counting the other."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _draw(logits: Tensor, params: SamplingParams, number: float) -> int:
    """Temperature, then top-k, then top-p, then the inverse of the cumulative distribution at `number`."""
    scaled = logits.to(torch.float64) / params.temperature
    if params.top_k == 1:
        return int(scaled.argmax())
    if not params.top_k and params.top_p >= 1:
        return _invert(torch.softmax(scaled, dim=-1), number)
    values, ids = _candidates(scaled, params)
    probabilities = torch.softmax(values, dim=-1)
    if params.top_p < 1:
        # Keep a token while those before it fall short of top_p: the first is always kept.
        kept = int((probabilities.cumsum(0) - probabilities < params.top_p).sum())
        probabilities = probabilities[:kept]
    return int(ids[_invert(probabilities, number)])


def _candidates(scaled: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Return the top-k logits and ids, best first, ties by lower id; all of them without a top-k."""
    if params.top_k and params.top_k < scaled.shape[0]:
        # topk orders ties as it likes, so take all that tie with the last and sort these.
        bar = scaled.topk(params.top_k).values[-1]
        ids = (scaled >= bar).nonzero().flatten()
        values, order = scaled[ids].sort(descending=True, stable=True)
        return values[: params.top_k], ids[order[: params.top_k]]
    values, ids = scaled.sort(descending=True, stable=True)
    return values, ids


def _invert(probabilities: Tensor, number: float) -> int:
    """Return the first index whose cumulative probability exceeds `number`, of weights that need not sum to one."""
    cumulative = probabilities.cumsum(0)
    index = int(torch.searchsorted(cumulative, number * cumulative[-1], right=True))
    return min(index, int(probabilities.nonzero()[-1]))
