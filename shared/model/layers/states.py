"""What a step leaves behind each of its spans."""

from typing import NamedTuple

from torch import Tensor


class StepStates(NamedTuple):
    """Of each span's last token, `[num_spans, ...]`. The next step may overwrite all of it."""

    hidden: Tensor  # [num_spans, hidden_size] after the last layer
    logits: Tensor | None = None  # [num_spans, vocab_size] float32, where they were computed in one go with the states
    best: Tensor | None = None  # [num_spans] int64, the ids of the greatest logits, where there are logits

    def first(self, count: int) -> "StepStates":
        """Return the states of the first spans."""
        hidden, logits, best = self
        return StepStates(
            hidden[:count], None if logits is None else logits[:count], None if best is None else best[:count]
        )
