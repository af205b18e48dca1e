"""A torch thread that computes a layer only when a test lets it."""

import threading

import pytest
from torch import Tensor

from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from tests.support.waiting import LIMIT_S, until


class Gate:
    """Stops the thread before each layer until it is let through. For an engine that computes layer by layer."""

    def __init__(self, transformer: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_begun = 0
        self.steps: list[list[int]] = []  # sizes of the spans of each step that has begun
        self._let = threading.Semaphore(0)
        self._is_open = False
        compute = transformer.layer

        def layer(index: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool) -> Tensor:
            if index == 0:
                self.steps.append([span.num_tokens for span in batch.spans])
            self._pass_through()
            return compute(index, hidden, batch, kv, kv_only)

        monkeypatch.setattr(transformer, "layer", layer)

    def _pass_through(self) -> None:
        self.num_begun += 1
        if not self._is_open:
            assert self._let.acquire(timeout=LIMIT_S)

    def let(self, num_layers: int = 1) -> None:
        self._let.release(num_layers)

    def open(self) -> None:
        """Let everything through from now on."""
        self._is_open = True
        self.let()

    async def begun(self, num_layers: int) -> None:
        await until(lambda: self.num_begun == num_layers)
