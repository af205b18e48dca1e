"""Choose the next token of each row. A row's choice depends on its logits and on its `Row` alone."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.model.grammar.guide import Guide
from shared.model.sampler.drawing import best_tokens, draw
from shared.model.sampler.masks import allow_only
from shared.model.sampler.penalties import TokenHistory, add_bias, forbid, penalise
from shared.sampling.logprobs import MAX_LOGPROBS, TokenLogprobs
from shared.sampling.params import SamplingParams

_NUMBERS_AT_ONCE = 1 << 20
"""Rows are drawn together up to as many logits: each needs a few float64 numbers, best kept in a CPU's cache."""


class Row(NamedTuple):
    """What is asked for one row of logits."""

    params: SamplingParams
    position: int  # of the token to be chosen, in its sequence; with the seed it fixes the random number
    may_end: bool = True  # `min_tokens` are out: stop tokens may be chosen
    history: TokenHistory | None = None  # set where the parameters have penalties
    guide: Guide | None = None  # set where they have a constraint
    num_answered: int = 0  # tokens of the answer so far, for the guide
    allowed: NDArray[np.uint32] | None = None  # bits of the tokens that may follow, as the guide says


class Sampled(NamedTuple):
    token: int
    logprobs: TokenLogprobs | None  # where they were asked for
    completes: bool = False  # the answer is whole with it, and its constraint lets nothing follow


def takes_best(row: Row) -> bool:
    """Whether a row's token is that of its greatest logit, and no more is asked for."""
    return row.params.is_plain and row.may_end and row.guide is None and row.allowed is None


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
    """Return one token per row of `logits` `[rows, vocab_size]` float32, which may be changed in place."""
    if all(map(takes_best, rows)):
        return [Sampled(token, None) for token in logits.argmax(dim=-1).tolist()]
    told = [row for row, wanted in enumerate(rows) if wanted.params.num_logprobs is not None]
    raw = logits[told].log_softmax(dim=-1) if told else None
    _adjust(logits, rows)
    chosen = logits.argmax(dim=-1)
    drawn = iter([row for row, wanted in enumerate(rows) if not wanted.params.greedy])
    while picked := list(islice(drawn, max(1, _NUMBERS_AT_ONCE // logits.shape[1]))):
        few = logits if len(picked) == len(rows) else logits[picked]
        chosen[picked] = draw(few, [rows[row].params for row in picked], [rows[row].position for row in picked])
    logprobs = {} if raw is None else dict(zip(told, _tell(raw, chosen[told], [rows[r] for r in told]), strict=True))
    return [Sampled(token, logprobs.get(row)) for row, token in enumerate(chosen.tolist())]


def _adjust(logits: Tensor, rows: Sequence[Row]) -> None:
    """Apply in place what concerns greedy rows too."""
    allow_only(logits, [(i, row.allowed) for i, row in enumerate(rows) if row.allowed is not None])
    forbid(logits, ((i, token) for i, row in enumerate(rows) if not row.may_end for token in row.params.stop_token_ids))
    add_bias(logits, [row.params for row in rows])
    penalised = []
    for i, row in enumerate(rows):
        if row.params.has_penalties:
            assert row.history is not None, "penalties without a history"
            penalised.append((i, row.params, row.history))
    penalise(logits, penalised)


def _tell(logprobs: Tensor, chosen: Tensor, rows: Sequence[Row]) -> list[TokenLogprobs]:
    own = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
    values, ids = best_tokens(logprobs, min(MAX_LOGPROBS, logprobs.shape[1]))
    return [
        TokenLogprobs(logprob, tuple(islice(zip(row_ids, row_values, strict=True), row.params.num_logprobs)))
        for logprob, row_ids, row_values, row in zip(own, ids.tolist(), values.tolist(), rows, strict=True)
    ]
