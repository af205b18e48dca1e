"""What a step leaves behind each of its spans."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class StepStates(NamedTuple):
    """Of each span's last token, `[num_spans, ...]`. The next step may overwrite all of it but what `best` returns."""

    hidden: Tensor  # [num_spans, hidden_size] after the last layer
    logits: Tensor | None = None  # [num_spans, vocab_size] float32, where they were computed in one go with the states
    best: Callable[[], list[int]] | None = None
    """Waits until the step is computed and returns the id of each greatest logit, where there are logits. It is to be
    called before the step after the next one runs."""
