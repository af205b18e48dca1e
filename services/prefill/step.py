"""Chunks of one or more prompts on their way through all layers, in one call of the torch thread."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from shared.engine.stage import Mark, Stager
from shared.model.layers.batch import Batch, Span
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer

NEWS_S = 0.003
"""Between two times that the event loop hears of layers."""


class PromptPart(NamedTuple):
    """One prompt's tokens of a step."""

    span: Span
    token_ids: Sequence[int]  # of the span only
    withdrawn: Callable[[], bool]  # asked between layers; once true, the prompt's pages are left alone


class LayerDone(NamedTuple):
    """A layer that some parts of a step are complete in, from `mark` on."""

    layer: int
    mark: Mark
    parts: Sequence[int]


class LayerNews:
    """Tells of a step's layers at most once in `NEWS_S`, and of the last at once; for the thread that computes it.

    On a GPU a layer is launched in less time than the event loop takes to hear of it, and each time it hears it holds
    up who launches the next.
    """

    def __init__(self, last_layer: int, tell: Callable[[Sequence[LayerDone]], object]) -> None:
        self._last_layer = last_layer
        self._tell = tell
        self._told_s = 0.0  # of `time.perf_counter`
        self._untold: list[LayerDone] = []

    def add(self, layer: int, mark: Mark, parts: Sequence[int]) -> None:
        """Note a layer, as `PrefillStep.run` calls `on_layer`."""
        self._untold.append(LayerDone(layer, mark, parts))
        now_s = time.perf_counter()
        if now_s - self._told_s >= NEWS_S or layer == self._last_layer:
            self._told_s = now_s
            untold, self._untold = self._untold, []
            self._tell(untold)


class PrefillStep:
    """Runs a packed batch layer by layer. What happens to one part changes nothing for the others.

    The torch thread runs it from beginning to end, since a hop between threads costs a quarter of a millisecond on an
    idle event loop and several on a busy one; `stop` may be called by any thread and ends it after the layer in hand.
    """

    def __init__(self, model: Transformer, kv: PagedKv, stager: Stager, parts: Sequence[PromptPart]) -> None:
        self._model = model
        self._kv = kv
        self._stager = stager
        self._parts = dict(enumerate(parts))  # those that are still in it
        self._stopped = False
        self.failed = True  # until it has ended well
        self.started_s = self.ended_s = 0.0  # of `time.perf_counter`, in the torch thread

    def stop(self) -> None:
        self._stopped = True

    def run(self, on_layer: Callable[[int, Mark, Sequence[int]], None], on_left: Callable[[int], None]) -> None:
        """Compute all layers; returns when the device has, too.

        `on_layer(layer, mark, parts)` is told the numbers of the parts that are complete in a layer from `mark` on,
        `on_left(part)` that a withdrawn one has left and its pages are not touched any more. Both must return at once.
        """
        self.started_s = time.perf_counter()
        try:
            self._run(on_layer, on_left)
            self.failed = False
        finally:
            self.ended_s = time.perf_counter()

    def _run(self, on_layer: Callable[[int, Mark, Sequence[int]], None], on_left: Callable[[int], None]) -> None:
        device = self._model.device
        ids = [token for part in self._parts.values() for token in part.token_ids]
        batch, hidden, mark = self._batch(), self._model.embed(torch.tensor(ids, device=device)), None
        for layer in range(self._model.num_layers):
            left = [number for number, part in self._parts.items() if part.withdrawn()]
            if left:
                hidden = self._without(left, hidden)
                self._model.wait()  # for what is in the device's queue and writes their pages
                for number in left:
                    on_left(number)
            if self._stopped or not self._parts:
                self._model.wait()
                return
            if left:
                batch = self._batch()
            last = layer == self._model.num_layers - 1  # nobody wants what comes out of it
            hidden = self._model.layer(layer, hidden, batch, self._kv, last)
            mark = self._stager.mark()
            on_layer(layer, mark, tuple(self._parts))
        self._stager.reached(mark)

    def _batch(self) -> Batch:
        spans = [part.span for part in self._parts.values()]
        return Batch.build(spans, self._kv.page_tokens, self._model.device)

    def _without(self, numbers: Sequence[int], hidden: torch.Tensor) -> torch.Tensor:
        """Drop parts, and their rows of `hidden`, `[num_tokens, hidden_size]`."""
        rows = torch.split(hidden, [part.span.num_tokens for part in self._parts.values()])
        kept = [rows[i] for i, number in enumerate(self._parts) if number not in numbers]
        for number in numbers:
            del self._parts[number]
        return torch.cat(kept) if kept else hidden[:0]
