"""Changes of logits that depend on a row's parameters and on the tokens so far, for all rows at once."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.sampling.params import SamplingParams


class TokenHistory:
    """The ids that one sequence has seen, each once, and how often each was generated.

    Reads `tokens`, the sequence's own list, as it grows. One thread may use it.
    """

    def __init__(self, tokens: Sequence[int], num_prompt_tokens: int) -> None:
        self._tokens = tokens
        self._num_seen = num_prompt_tokens
        prompt = dict.fromkeys(tokens[:num_prompt_tokens])
        self._slots = {token: slot for slot, token in enumerate(prompt)}
        self._ids = array("q", prompt)
        self._counts = array("f", bytes(4 * len(prompt)))

    def seen(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids (int64) and counts (float32), copied: 0 is a token of the prompt that was not generated."""
        for token in self._tokens[self._num_seen :]:
            slot = self._slots.setdefault(token, len(self._ids))
            if slot == len(self._ids):
                self._ids.append(token)
                self._counts.append(0)
            self._counts[slot] += 1
        self._num_seen = len(self._tokens)
        return np.array(self._ids), np.array(self._counts)


def forbid(logits: Tensor, forbidden: Iterable[tuple[int, int]]) -> None:
    """Make it impossible, in place, to choose a token: `forbidden` are (row, id)."""
    pairs = list(forbidden)
    if pairs:
        index = torch.tensor(pairs, device=logits.device)
        logits[index[:, 0], index[:, 1]] = float("-inf")


def add_bias(logits: Tensor, params: Sequence[SamplingParams]) -> None:
    """Add each row's `logit_bias`, in place."""
    biases = [(row, token, bias) for row, wanted in enumerate(params) for token, bias in wanted.logit_bias]
    if biases:
        rows, tokens, values = zip(*biases, strict=True)
        index = torch.tensor([rows, tokens], device=logits.device)
        logits[index[0], index[1]] += torch.tensor(values, dtype=logits.dtype, device=logits.device)


def penalise(logits: Tensor, penalised: Sequence[tuple[int, SamplingParams, TokenHistory]]) -> None:
    """Apply repetition, frequency and presence penalties, in place, to rows given with their histories.

    As vLLM does: repetition concerns tokens of prompt and answer (Keskar et al., arXiv 1909.05858, with the sign taken
    care of), the other two count tokens of the answer only (OpenAI's definition). Touches the tokens seen, no others.
    """
    if not penalised:
        return
    device = logits.device
    seen = [history.seen() for _, _, history in penalised]
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in seen])).to(device)
    counts = torch.from_numpy(np.concatenate([counts for _, counts in seen])).to(device)
    repeats = torch.tensor([len(ids) for ids, _ in seen], device=device)
    rows = torch.tensor([row for row, _, _ in penalised], device=device).repeat_interleave(repeats)
    strengths = torch.tensor(
        [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for _, p, _ in penalised], device=device
    )
    repetition, frequency, presence = strengths.repeat_interleave(repeats, dim=0).unbind(dim=1)
    values = logits[rows, ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[rows, ids] = values - frequency * counts - presence * (counts > 0)
