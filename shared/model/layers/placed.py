"""The numbers that kernels read of a step, in one piece of memory: a host writes them, one copy brings them over."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.model.layers.span import Span

N = TypeVar("N", Tensor, NDArray[np.int64])

_NOWHERE = -1


class StepShape(NamedTuple):
    """What a piece of memory has room for."""

    num_rows: int
    num_spans: int
    num_groups: int
    num_pages: int  # of a sequence, at most


class StepNumbers(NamedTuple, Generic[N]):
    """Views of a piece of memory, on the host or on a device. Rows and spans beyond the step's own are padding."""

    token_ids: N  # [num_rows] int64
    positions: N  # [num_rows] int64, in the sequence
    slots: N  # [num_groups, num_rows] int64: page * page_tokens + offset; -1: K and V go nowhere
    lengths: N  # [num_spans] int32, of the sequences after this step
    query_starts: N  # [num_spans + 1] int32, the row of each span's first token
    tables: N  # [num_groups, num_spans, num_pages] int32: the pages of each sequence


def num_bytes(shape: StepShape) -> int:
    rows, spans, groups, pages = shape
    return 8 * rows * (2 + groups) + 4 * (2 * spans + 1 + groups * spans * pages)


def within(memory: Tensor, shape: StepShape) -> StepNumbers[Tensor]:
    """Return the numbers that lie in `memory`, `[num_bytes]` uint8."""
    rows, spans, groups, pages = shape
    sizes = [8 * rows, 8 * rows, 8 * groups * rows, 4 * spans, 4 * (spans + 1), 4 * groups * spans * pages]
    parts = torch.split(memory, sizes)
    long, short = [part.view(torch.int64) for part in parts[:3]], [part.view(torch.int32) for part in parts[3:]]
    return StepNumbers(
        long[0], long[1], long[2].view(groups, rows), short[0], short[1], short[2].view(groups, spans, pages)
    )


def write(
    numbers: StepNumbers[NDArray[np.int64]],
    token_ids: Sequence[int],
    spans: Sequence[Span],
    page_tokens: int,
    padding_length: int = 0,
) -> None:
    """Write a step, and padding: rows that go nowhere, spans without rows over sequences of `padding_length`.

    What lies in a table beyond its sequence's end is left as it is.
    """
    counts = np.array([span.num_tokens for span in spans], dtype=np.int64)
    starts = np.array([span.start for span in spans], dtype=np.int64)
    ends = counts.cumsum()
    used, num_rows = len(spans), int(counts.sum())
    numbers.token_ids[: len(token_ids)], numbers.token_ids[len(token_ids) :] = token_ids, 0
    positions = np.arange(num_rows) + np.repeat(starts - (ends - counts), counts)
    numbers.positions[:num_rows], numbers.positions[num_rows:] = positions, 0
    numbers.lengths[:used], numbers.lengths[used:] = starts + counts, padding_length
    numbers.query_starts[0], numbers.query_starts[1 : used + 1], numbers.query_starts[used + 1 :] = 0, ends, num_rows
    owners = np.repeat(np.arange(used), counts)
    silent = np.repeat(np.array([not span.stores for span in spans], dtype=np.bool_), counts)
    for group, (tables, slots) in enumerate(zip(numbers.tables, numbers.slots, strict=True)):
        for row, span in enumerate(spans):
            count = -(-span.end // page_tokens)
            tables[row, :count] = span.tables[group][:count]
        slots[:num_rows] = tables[owners, positions // page_tokens] * np.int64(page_tokens) + positions % page_tokens
        slots[:num_rows][silent] = _NOWHERE
        slots[num_rows:] = _NOWHERE


def place(
    token_ids: Sequence[int], spans: Sequence[Span], page_tokens: int, device: torch.device
) -> StepNumbers[Tensor]:
    """Return the numbers of one step on a device, which need not have them when this returns."""
    num_pages = max(-(-span.end // page_tokens) for span in spans)
    num_rows = sum(span.num_tokens for span in spans)
    shape = StepShape(num_rows, len(spans), len(spans[0].tables), num_pages)
    host = torch.empty(num_bytes(shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    numbers = on_host(host, shape)
    numbers.tables[:] = _NOWHERE
    write(numbers, token_ids, spans, page_tokens)
    return within(host.to(device, non_blocking=True), shape)


def on_host(memory: Tensor, shape: StepShape) -> StepNumbers[NDArray[np.int64]]:
    """Return the numbers that lie in `memory`, as NumPy writes them."""
    return StepNumbers(*(part.numpy() for part in within(memory, shape)))
