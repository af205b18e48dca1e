"""What the decode engine asks of the model; every method runs in the torch thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from services.decode.holding import Holding
from services.decode.request import Request
from services.decode.scheduler import Slice
from shared.model.layers.batch import Span
from shared.model.pages.kv import PagedKv
from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, Sampled, sample
from shared.model.transformer import Transformer


class RequestPart(NamedTuple):
    """A request in the torch thread's hand. The loop may take its holding from it meanwhile: this one stays."""

    request: Request
    holding: Holding
    num_layers: int = 0  # of its tail, that are to run


@dataclass(frozen=True)
class DecodeStep:
    """What the torch thread does in one go: some layers of some tails, and a token for each request of the batch."""

    tails: Sequence[RequestPart]
    batch: Sequence[RequestPart]

    @classmethod
    def of(cls, slices: Sequence[Slice[Request]], batch: Sequence[Request]) -> "DecodeStep":
        """Return the step of these requests, all of which hold pages."""
        return cls(
            [RequestPart(request, request.held, num_layers) for request, num_layers in slices],
            [RequestPart(request, request.held) for request in batch],
        )

    def __bool__(self) -> bool:
        return bool(self.tails or self.batch)

    @property
    def holdings(self) -> list[Holding]:
        return [part.holding for part in (*self.tails, *self.batch)]


@dataclass
class StepOutcome:
    """What came of a step. Torch's errors, out of memory included, are results: they concern a part of it only."""

    tails: list[Sampled | RuntimeError | None] = field(default_factory=list)  # as the step's; None: not at its end yet
    batch: list[Sampled] | RuntimeError = field(default_factory=list)  # as the step's
    tails_s: float = 0.0  # in the model, for tails
    batch_s: float = 0.0  # in the model, for the batch: forward pass and sampling


class Runner:
    """Reads requests and writes their pages, tails and histories; changes nothing else of them."""

    def __init__(self, transformer: Transformer, kv: PagedKv) -> None:
        self._transformer = transformer
        self._kv = kv

    def run(self, step: DecodeStep) -> StepOutcome:
        """Compute a step: tails first, one after the other, then the batch at once."""
        outcome = StepOutcome()
        started = time.perf_counter()
        for part in step.tails:
            try:
                outcome.tails.append(self._advance_tail(part))
            except RuntimeError as error:
                outcome.tails.append(error)
        if step.tails:
            self._transformer.wait()  # pages that a request leaves after this step are not touched any more
        outcome.tails_s = time.perf_counter() - started
        if step.batch:
            try:
                outcome.batch, outcome.batch_s = self._generate(step.batch)
            except RuntimeError as error:
                outcome.batch = error
        return outcome

    def _advance_tail(self, part: RequestPart) -> Sampled | None:
        """Run a tail's next layers. Return the token that follows it once the whole tail is computed."""
        request, holding, num_layers = part
        assert holding.tail is not None, "no tail to advance"
        last = holding.tail.advance(num_layers, self._transformer, self._kv, holding.reservation, request.tokens)
        return None if last is None else self._sample(last, [part])[0]

    def _generate(self, batch: Sequence[RequestPart]) -> tuple[list[Sampled], float]:
        """Run the last token of each request through the model. Return what follows each, and the model's seconds."""
        spans = [Span(part.holding.reservation.tables, len(part.request.tokens) - 1, 1) for part in batch]
        started = time.perf_counter()
        ids = [part.request.tokens[-1] for part in batch]
        results = self._sample(self._transformer.decode(ids, spans, self._kv), batch)
        return results, time.perf_counter() - started

    def _sample(self, hidden: torch.Tensor, batch: Sequence[RequestPart]) -> list[Sampled]:
        """Sample each request's next token from the state that predicts it: `hidden` is `[len(batch), hidden size]`."""
        return sample(self._transformer.logits(hidden), [_row(part.request) for part in batch])


def _row(request: Request) -> Row:
    generation = request.generation
    params = generation.sampling
    if request.history is None and params.has_penalties:
        num_prompt_tokens = len(generation.token_ids) - generation.num_generated_before
        request.history = TokenHistory(request.tokens, num_prompt_tokens)
    may_end = request.num_generated >= params.min_tokens
    return Row(params, len(request.tokens), may_end, request.history)
