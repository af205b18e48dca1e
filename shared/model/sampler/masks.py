"""Masks of constraints on logits."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def allow_only(logits: Tensor, masks: Sequence[tuple[int, NDArray[np.uint32]]]) -> None:
    """Make all other tokens impossible, in place: `masks` are (row, words), bit i % 32 of word i // 32 for token i.

    Bits behind the vocabulary do not count. To a device the words travel as they are, a thirty-second of the logits.
    """
    if not masks:
        return
    words = np.stack([words for _, words in masks])
    forbidden = ~_unpacked(words, logits)
    if len(masks) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
        return
    rows = torch.tensor([row for row, _ in masks], device=logits.device)
    logits[rows] = logits[rows].masked_fill_(forbidden, float("-inf"))


def _unpacked(words: NDArray[np.uint32], logits: Tensor) -> Tensor:
    """Return `[rows, vocab_size]` bool, on the device of the logits."""
    data, vocab_size = words.view(np.uint8), logits.shape[1]
    if _is_host(logits.device):
        bits = np.unpackbits(data, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    numbers = torch.arange(8, dtype=torch.uint8, device=logits.device)
    bits_of = torch.from_numpy(data).to(logits.device).unsqueeze(-1) >> numbers
    return (bits_of & 1).bool().flatten(1)[:, :vocab_size]


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"
