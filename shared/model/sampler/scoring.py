"""How likely given tokens are: from hidden states to log-probabilities, a few rows at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shared.model.sampler.drawing import best_tokens
from shared.sampling.logprobs import TokenLogprobs

ROWS_AT_ONCE = 64
NUMBERS_AT_ONCE = 1 << 22
"""Logits of that many rows and numbers exist at a time: those of a whole chunk would be gigabytes."""


@torch.inference_mode()
def score(
    logits_of: Callable[[Tensor], Tensor],
    states: Tensor,
    token_ids: Sequence[int],
    vocab_size: int,
    num_top: int,
) -> list[TokenLogprobs]:
    """Return how likely each of `token_ids` is behind its row of `states`, `[num tokens, hidden size]`.

    `logits_of` returns float32 `[rows, vocab_size]`, which its next call may overwrite. A row's result depends on that
    row alone where its logits do. Of equal alternatives the lower id comes first.
    """
    rows = max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // vocab_size))
    told: list[TokenLogprobs] = []
    for first in range(0, len(token_ids), rows):
        logprobs = logits_of(states[first : first + rows]).log_softmax(dim=-1)
        ids = torch.tensor(token_ids[first : first + rows], device=logprobs.device).unsqueeze(1)
        own = logprobs.gather(1, ids)
        ranks = 1 + (logprobs > own).sum(dim=-1)
        tops = _tops(logprobs, num_top)
        told += map(TokenLogprobs, own.squeeze(1).tolist(), tops, ranks.tolist())
    return told


def _tops(logprobs: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
    if not num_top:
        return [()] * len(logprobs)
    values, ids = best_tokens(logprobs, min(num_top, logprobs.shape[1]))
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
