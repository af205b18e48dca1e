"""Decode steps as CUDA graphs: one launch a step where PyTorch makes four hundred."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shared.model.layers.batch import Batch, Span
from shared.model.pages.groups import num_pages
from shared.model.pages.kv import PagedKv

StepFunction = Callable[[Tensor, Batch], Tensor]
"""Token ids `[rows]` and their batch to hidden states `[rows, hidden_size]`, by device work alone."""

_NO_PAGE = -1
_NO_SPAN = Span((), 0, 1)


class DecodeGraphs:
    """Captures a decode step over one cache for each of a few batch sizes, and replays the smallest that fits.

    Rows beyond a step's own are padding: position 0 of a sequence without pages, which writes nowhere. Belongs to the
    thread that computes. `run` returns memory that the next `run` overwrites.
    """

    def __init__(self, step: StepFunction, kv: PagedKv, max_tokens: int, device: torch.device) -> None:
        """`max_tokens` is the longest sequence that will come."""
        self._step = step
        self._kv = kv
        self._table_width = num_pages(max_tokens, kv.page_tokens)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[int, _Captured] = {}

    def serves(self, kv: PagedKv, spans: Sequence[Span]) -> bool:
        """Return whether `run` may be asked for these."""
        longest = self._table_width * self._kv.page_tokens
        return kv is self._kv and all(span.num_tokens == 1 and span.end <= longest and span.stores for span in spans)

    def run(self, token_ids: Sequence[int], spans: Sequence[Span]) -> Tensor:
        """Return the hidden states `[len(spans), hidden_size]` after the last layer."""
        captured = self.capture(padded(len(spans)))
        captured.inputs.fill(token_ids, spans)
        captured.graph.replay()
        return captured.hidden[: len(spans)]

    def capture(self, rows: int) -> "_Captured":
        """Return the graph of a batch size, made now if need be."""
        if rows not in self._captured:
            inputs = _Inputs(rows, self._kv, self._table_width, self._device)
            inputs.fill([], [])
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._step(inputs.token_ids, inputs.batch())  # what is made at first use must not be made in a capture
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads copy KV meanwhile; only this one's calls belong to the graph.
            with (
                _no_collection(),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                hidden = self._step(inputs.token_ids, inputs.batch())
            self._captured[rows] = _Captured(inputs, graph, hidden)
        return self._captured[rows]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of a capture: destroying another graph, left in a cycle, would end it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class _Captured:
    inputs: "_Inputs"
    graph: torch.cuda.CUDAGraph
    hidden: Tensor  # [rows, hidden_size]


class _Inputs:
    """All that a graph reads of a step, in one piece of memory on each side: one copy brings it over."""

    def __init__(self, rows: int, kv: PagedKv, table_width: int, device: torch.device) -> None:
        self._kv = kv
        self._rows = rows
        self._shape = (kv.num_groups, rows, table_width)
        size = 2 * rows + kv.num_groups * rows * table_width
        self._host = torch.empty(size, dtype=torch.int32, pin_memory=True)
        self._device = torch.empty(size, dtype=torch.int32, device=device)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        numbers = self._host.numpy()
        self._ids, self._positions = numbers[:rows], numbers[rows : 2 * rows]
        self._tables = numbers[2 * rows :].reshape(self._shape)
        self._tables[:] = _NO_PAGE

    def fill(self, token_ids: Sequence[int], spans: Sequence[Span]) -> None:
        """Queue a step's numbers, and padding. What lies in a table beyond a sequence's end is not read."""
        self._arrived.synchronize()  # the copy before this one has left the host's side
        used = len(spans)
        self._ids[:used], self._ids[used:] = token_ids, 0
        self._positions[:used], self._positions[used:] = [span.start for span in spans], 0
        for row, span in enumerate(spans):
            count = num_pages(span.end, self._kv.page_tokens)
            for group, table in enumerate(span.tables):
                self._tables[group, row, :count] = table[:count]
        self._tables[:, used:, 0] = _NO_PAGE
        self._device.copy_(self._host, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(self._device.device))

    @cached_property
    def token_ids(self) -> Tensor:
        return self._device[: self._rows]

    def batch(self) -> Batch:
        """Return a batch over the device's side; its slots are computed there, below 0 for padding."""
        rows, page_tokens = self._rows, self._kv.page_tokens
        positions = self._device[rows : 2 * rows].to(torch.int64)
        tables = self._device[2 * rows :].view(self._shape)
        batch = Batch((_NO_SPAN,) * rows, page_tokens, positions)
        for group in range(self._kv.num_groups):
            page = tables[group].gather(1, (positions // page_tokens)[:, None])[:, 0]
            batch.preset(group, tables[group], page * page_tokens + positions % page_tokens)
        return batch


def padded(count: int) -> int:
    """Return the batch size that a graph is made for: a power of two up to 8, then a multiple of 8."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
