"""Choose the next token of rows of which some have a guide: masks before the choice, the guides' state behind it."""

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from shared.errors import BadRequest
from shared.model.grammar.guide import Guide, MaskWriter
from shared.model.sampler.sampling import Row, Sampled, sample

Choice: TypeAlias = Sampled | BadRequest
"""What follows a row. `BadRequest` says that the answer cannot go on under its constraint."""


class TokenChooser:
    """Chooses tokens. One thread at a time may use it, the one that the guides of its rows belong to.

    Masks are computed when the logits have been asked for, so that a GPU works meanwhile.
    """

    def __init__(self) -> None:
        self._masks = MaskWriter()

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
        """Return what follows each row: `logits` `[rows, vocab_size]` float32 may be changed in place."""
        guided = [(i, row.guide) for i, row in enumerate(rows) if row.guide is not None]
        if not guided:
            return [*sample(logits, rows)]
        for i, guide in guided:
            guide.return_to(rows[i].num_answered)
        masks = self._masks.write([guide for _, guide in guided], [rows[i].may_end for i, _ in guided])
        masked = list(rows)
        for (i, _), mask in zip(guided, masks, strict=True):
            if not isinstance(mask, BadRequest):
                masked[i] = rows[i]._replace(allowed=mask, may_end=True)
        sampled = sample(logits, masked)
        chosen: list[Choice] = [*sampled]
        for (i, guide), mask in zip(guided, masks, strict=True):
            chosen[i] = mask if isinstance(mask, BadRequest) else _taken(guide, sampled[i])
        return chosen


def _taken(guide: Guide, sampled: Sampled) -> Choice:
    try:
        guide.take([sampled.token])
    except BadRequest as error:
        return error
    return sampled._replace(completes=guide.is_complete)
