"""Attention over paged K and V: the interface that each backend implements."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv


class Attention(ABC):
    """Causal attention of a step's queries over the pages of their sequences."""

    name: str
    """Whose kernels run, for logs and results."""
    page_tokens: ClassVar[int] = 1
    """Pages must hold a multiple of this many tokens."""
    can_be_captured: ClassVar[bool] = False
    """Whether a decode step reads nothing but the batch's tensors, so that a CUDA graph can replay it."""
    can_capture_ragged: ClassVar[bool] = False
    """Whether any step does, for spans of any length up to `max_queries`, none included."""

    @abstractmethod
    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        """Return `[num_tokens, num_heads, head_dim]` for queries `q` of the same shape.

        K and V of the step's own tokens are in the pages already. Position p attends to `(p - window, p]`, to
        `[0, p]` without a window; pages outside of that may be missing from the tables. Changes nothing.
        """
