"""Ragged steps as CUDA graphs: one launch a step where PyTorch makes four hundred."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shared.model.layers.batch import Batch, Span
from shared.model.layers.placed import StepShape, num_bytes, on_host, within, write
from shared.model.layers.states import StepStates
from shared.model.pages.groups import num_pages
from shared.model.pages.kv import PagedKv


class GraphOutput(NamedTuple):
    """Of each span's last token, on the device."""

    hidden: Tensor  # [num_spans, hidden_size]
    logits: Tensor  # [num_spans, vocab_size] float32
    best: Tensor  # [num_spans] int64, the ids of the greatest logits


StepFunction = Callable[[Batch, Tensor], GraphOutput]
"""A batch and its token ids `[num_rows]` to what is after it, by device work alone."""

MAX_ROWS = 1024
"""Steps of more rows take a device longer to compute than a host to launch."""

_NO_SPAN = Span((), 0, 1)


class GraphSize(NamedTuple):
    """What a graph is made for. A decode step has as many rows as spans."""

    num_rows: int
    num_spans: int
    is_decode: bool


class Recorder(ABC):
    """Runs device work once and returns what runs it again, on the same memory."""

    @abstractmethod
    def record(self, work: Callable[[], GraphOutput]) -> tuple[Callable[[], None], GraphOutput]:
        """Return what replays `work`, and the memory in which it leaves its result."""

    @abstractmethod
    def mark(self) -> Callable[[], None]:
        """Return what waits until the device has done all that was submitted so far."""


class StepGraphs:
    """Captures steps over one cache for a few sizes, and replays the smallest that fits.

    Rows beyond a step's own are padding: those of a decode step are position 0 of sequences without pages, those of a
    ragged step belong to no span. They write nowhere. Belongs to the thread that computes.

    A step need not be read before the next one is queued: a token id of `~i` stands for the best token after span i of
    the step before.
    """

    def __init__(
        self,
        step: StepFunction,
        kv: PagedKv,
        max_tokens: int,
        max_batch: int,
        ragged: bool,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        """`max_tokens` is the longest sequence that will come; `ragged` steps are captured as far as attention can."""
        self._step = step
        self._kv = kv
        self._max_pages = num_pages(max_tokens, kv.page_tokens)
        self._max_spans = padded(max_batch)
        self._ragged = ragged
        self._device = device
        self._recorder = recorder
        self._captured: dict[GraphSize, _Captured] = {}
        self._best = torch.zeros(self._max_spans, dtype=torch.int64, device=device)  # of the last step
        self._read = [torch.zeros_like(self._best, device="cpu", pin_memory=device.type == "cuda") for _ in range(2)]

    def sizes(self) -> list[GraphSize]:
        """Return all that steps can ask for, the largest first: the others find its memory."""
        counts = range(1, self._max_spans + 1)
        decode = {self._size(count, count, True) for count in counts}
        ragged = {self._size(rows, 1, False) for rows in range(2, MAX_ROWS + 1)} if self._ragged else set()
        return sorted(decode | ragged, reverse=True)

    def serves(self, kv: PagedKv, spans: Sequence[Span]) -> bool:
        """Return whether `run` may be asked for these."""
        if kv is not self._kv or len(spans) > self._max_spans:
            return False
        if max(span.end for span in spans) > self._max_pages * kv.page_tokens:
            return False
        num_rows = sum(span.num_tokens for span in spans)
        return num_rows == len(spans) or (self._ragged and num_rows <= MAX_ROWS)

    def run(self, token_ids: Sequence[int], spans: Sequence[Span]) -> StepStates:
        """Return what follows each span."""
        captured = self.capture(self._size(len(token_ids), len(spans), len(token_ids) == len(spans)))
        captured.inputs.send(token_ids, spans)
        captured.replay()
        return self._states(captured.output, len(spans))

    def capture(self, size: GraphSize) -> "_Captured":
        """Return the graph of a size, made now if need be."""
        if size not in self._captured:
            inputs = _Inputs(size, self._kv, self._max_pages, self._device, self._recorder)
            inputs.send([0], [Span([[0]] * self._kv.num_groups, 0, 1, stores=False)])
            replay, output = self._recorder.record(lambda: self._run(inputs.batch()))
            self._captured[size] = _Captured(inputs, replay, output)
        return self._captured[size]

    def _run(self, batch: Batch) -> GraphOutput:
        ids = batch.token_ids
        output = self._step(batch, torch.where(ids < 0, self._best[(~ids).clamp(min=0)], ids))
        self._best[: len(output.best)] = output.best
        return output

    def _states(self, output: GraphOutput, num_spans: int) -> StepStates:
        self._read.reverse()  # the other one may not be read yet
        host = self._read[0]
        host.copy_(self._best, non_blocking=True)
        arrived = self._recorder.mark()

        def best() -> list[int]:
            arrived()
            found: list[int] = host[:num_spans].tolist()
            return found

        return StepStates(output.hidden[:num_spans], output.logits[:num_spans], best)

    def _size(self, num_rows: int, num_spans: int, is_decode: bool) -> GraphSize:
        if is_decode:
            return GraphSize(padded(num_spans), padded(num_spans), True)
        return GraphSize(padded_rows(num_rows), self._max_spans, False)


@dataclass(frozen=True)
class _Captured:
    inputs: "_Inputs"
    replay: Callable[[], None]
    output: GraphOutput


class _Inputs:
    """All that a graph reads of a step, on both sides: one copy brings it over."""

    def __init__(self, size: GraphSize, kv: PagedKv, max_pages: int, device: torch.device, recorder: Recorder) -> None:
        self._size = size
        self._page_tokens = kv.page_tokens
        shape = StepShape(size.num_rows, size.num_spans, kv.num_groups, max_pages)
        self._host = torch.zeros(num_bytes(shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(num_bytes(shape), dtype=torch.uint8, device=device)
        self._numbers = on_host(self._host, shape)
        self._placed = within(self._device, shape)
        self._recorder = recorder
        self._arrived: Callable[[], None] = lambda: None

    def send(self, token_ids: Sequence[int], spans: Sequence[Span]) -> None:
        """Queue a step's numbers, and padding."""
        self._arrived()  # the copy before this one has left the host's side
        write(self._numbers, token_ids, spans, self._page_tokens, padding_length=int(self._size.is_decode))
        self._device.copy_(self._host, non_blocking=True)
        self._arrived = self._recorder.mark()

    def batch(self) -> Batch:
        """Return the batch that lies on the device."""
        spans = (_NO_SPAN,) * self._size.num_spans
        max_queries = 1 if self._size.is_decode else self._size.num_rows
        return Batch(spans, self._page_tokens, max_queries, self._placed)


class CudaRecorder(Recorder):
    """Graphs that share memory, captured on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], GraphOutput]) -> tuple[Callable[[], None], GraphOutput]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()  # what is made at first use must not be made in a capture
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads copy KV meanwhile; only this one's calls belong to the graph.
        with _no_collection(), torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            output = work()
        return graph.replay, output

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize


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


def padded(count: int) -> int:
    """Return the batch size that a graph is made for: a power of two up to 8, then a multiple of 8."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


def padded_rows(count: int) -> int:
    """Return the rows that a graph of a ragged step is made for: a quarter of them are padding at most, from 128 on.

    Fewer rows take as long: a device reads the weights meanwhile.
    """
    step = 64 if count <= 512 else 128
    return max(32, count if count <= 32 else -(-count // step) * step)
