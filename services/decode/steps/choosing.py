"""From logits to the tokens of requests: their rows, and the guides of those whose answers have a constraint."""

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from services.decode.request import Request
from shared.errors import BadRequest
from shared.model.grammar.guide import Guide, MaskWriter
from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, Sampled, sample

Result: TypeAlias = Sampled | RuntimeError | BadRequest | None
"""What a step brings a request. None: its tail is not at its end yet. Torch's errors concern a part of a step only;
`BadRequest` says that an answer cannot go on under its constraint."""


class TokenChooser:
    """Chooses the next token of each request. Every method runs in the torch thread.

    Masks are computed when the logits have been asked for, so that a GPU works meanwhile.
    """

    def __init__(self) -> None:
        self._masks = MaskWriter()

    def choose(self, logits: Tensor, requests: Sequence[Request]) -> list[Result]:
        """Return what follows each request: `logits` `[requests, vocab_size]` float32 may be changed in place."""
        rows = [row_of(request) for request in requests]
        guided = [(i, guide) for i, request in enumerate(requests) if (guide := request.generation.guide) is not None]
        if not guided:
            return [*sample(logits, rows)]
        for i, guide in guided:
            guide.return_to(requests[i].num_answered)
        masks = self._masks.write([guide for _, guide in guided], [rows[i].may_end for i, _ in guided])
        for (i, _), mask in zip(guided, masks, strict=True):
            if not isinstance(mask, BadRequest):
                rows[i] = rows[i]._replace(allowed=mask, may_end=True)
        chosen = sample(logits, rows)
        results: list[Result] = [*chosen]
        for (i, guide), mask in zip(guided, masks, strict=True):
            results[i] = mask if isinstance(mask, BadRequest) else _taken(guide, chosen[i])
        return results


def _taken(guide: Guide, sampled: Sampled) -> Sampled | BadRequest:
    try:
        guide.take([sampled.token])
    except BadRequest as error:
        return error
    return sampled._replace(completes=guide.is_complete)


def row_of(request: Request) -> Row:
    generation = request.generation
    params = generation.sampling
    if request.history is None and params.has_penalties:
        num_prompt_tokens = len(generation.token_ids) - generation.num_generated_before
        request.history = TokenHistory(request.tokens, num_prompt_tokens)
    may_end = request.num_generated >= params.min_tokens
    return Row(params, len(request.tokens), may_end, request.history)
