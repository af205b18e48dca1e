"""What the decode engine asks of the model; every method runs in the torch thread."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch

from services.decode.holding import Holding
from services.decode.request import Request
from services.decode.tail import Tail
from shared.engine.costs.steps import StepWork
from shared.engine.packing import Packed
from shared.model.layers.batch import Batch, Span
from shared.model.layers.states import StepStates
from shared.model.pages.kv import PagedKv
from shared.model.sampler.choosing import Choice, TokenChooser
from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, Sampled, takes_best
from shared.model.sampler.scoring import score
from shared.model.transformer import Transformer
from shared.sampling.logprobs import TokenLogprobs
from shared.step_profile import num_pairs


class RequestPart(NamedTuple):
    """A request in the torch thread's hand. The loop may take its holding from it meanwhile: this one stays."""

    request: Request
    holding: Holding
    num_tokens: int = 1  # that go through all layers: of its tail, or its last one

    @property
    def tail(self) -> Tail:
        assert self.holding.tail is not None, "a part of a request that has no tail"
        return self.holding.tail


class GatedPass(NamedTuple):
    """Tails that go through layers `[first_layer, end_layer)` together."""

    first_layer: int
    end_layer: int
    parts: Sequence[RequestPart]


@dataclass(frozen=True)
class DecodeStep:
    """What the torch thread does in one go.

    One ragged pass through all layers: the last token of each request of the batch and row ranges of tails. Before it,
    passes through some layers, of tails that wait for entries.
    """

    batch: Sequence[RequestPart]
    rows: Sequence[RequestPart]
    passes: Sequence[GatedPass]

    @classmethod
    def of(cls, packed: Packed[Request], batch: Sequence[Request]) -> "DecodeStep":
        """Return the step of these requests, all of which hold pages."""
        return cls(
            [RequestPart(request, request.held) for request in batch],
            [RequestPart(request, request.held, num_tokens) for request, num_tokens in packed.rows],
            [
                GatedPass(first, end, [RequestPart(request, request.held) for request in requests])
                for first, end, requests in packed.passes
            ],
        )

    def __bool__(self) -> bool:
        return bool(self.batch or self.rows or self.passes)

    @property
    def tails(self) -> list[RequestPart]:
        return [*self.rows, *(part for gated in self.passes for part in gated.parts)]

    @property
    def holdings(self) -> list[Holding]:
        return [part.holding for part in (*self.batch, *self.tails)]

    def work(self, num_layers: int) -> StepWork:
        """Return what is in it, before any of it is computed."""
        tokens = pairs = 0.0
        for first, end, share in self._tail_ranges(num_layers):
            tokens += (end - first) * share
            pairs += num_pairs(first, end) * share
        context = sum(len(part.request.tokens) + part.request.num_coming for part in self.batch)
        return StepWork(tokens, pairs, len(self.batch), context)

    def _tail_ranges(self, num_layers: int) -> Iterator[tuple[int, int, float]]:
        """Yield the tokens of tails, `[first, end)`, and the share of layers that they go through."""
        for part in self.rows:
            yield part.tail.first, part.tail.first + part.num_tokens, 1.0
        for gated in self.passes:
            for part in gated.parts:
                yield part.tail.first, part.tail.chunk_end, (gated.end_layer - gated.first_layer) / num_layers


@dataclass(frozen=True)
class PromptComputed:
    """The end of a prompt behind which no token is wanted."""


Result: TypeAlias = Choice | PromptComputed | RuntimeError | None
"""What a step brings a request. None: its tail is not at its end yet. Torch's errors concern a part of a step only."""


Scores: TypeAlias = dict[Request, list[TokenLogprobs]]
"""How likely the next tokens of prompts were that ask for it."""


@dataclass
class StepOutcome:
    """What came of a step."""

    results: dict[Request, Result] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    model_s: float = 0.0  # forward passes and sampling


class Runner:
    """Reads requests and writes their pages, tails and histories; changes nothing else of them."""

    def __init__(self, transformer: Transformer, kv: PagedKv) -> None:
        self._transformer = transformer
        self._kv = kv
        self._chooser = TokenChooser()

    def run(self, step: DecodeStep) -> StepOutcome:
        """Compute a step: passes of gated tails, then all rows at once, then a token for each that is at its end."""
        started = time.perf_counter()
        outcome = StepOutcome()
        results = outcome.results
        states: list[tuple[RequestPart, torch.Tensor]] = []
        copy_beginnings(step.rows, self._kv)
        for gated in step.passes:
            for part, state in self._through_layers(gated, outcome.scores).items():
                if isinstance(state, torch.Tensor) and part.request.wants_token:
                    states.append((part, state))
                elif isinstance(state, torch.Tensor):
                    results[part.request] = PromptComputed()
                else:
                    results[part.request] = state
        self._generate(step.batch, step.rows, states, outcome)
        outcome.model_s = time.perf_counter() - started
        return outcome

    def _through_layers(
        self, gated: GatedPass, scores: Scores
    ) -> dict[RequestPart, torch.Tensor | RuntimeError | None]:
        """Run a pass. Return the last state `[1, hidden size]` of the tails that are at their end, None for others."""
        first, end, parts = gated
        try:
            return dict(zip(parts, self._advance(first, end, parts, scores), strict=True))
        except RuntimeError as error:
            if len(parts) == 1:
                return {parts[0]: error}
        # Their states are as before: who fails alone fails alone.
        alone = [self._through_layers(GatedPass(first, end, [part]), scores) for part in parts]
        return {part: state for found in alone for part, state in found.items()}

    def _advance(self, first: int, end: int, parts: Sequence[RequestPart], scores: Scores) -> list[torch.Tensor | None]:
        model = self._transformer
        spans = [span_of(part, part.tail.chunk_end - part.tail.first) for part in parts]
        if first == 0:
            hidden = model.embed(self._ids(_tokens(parts, spans)))
        else:
            hidden = torch.cat([part.tail.hidden for part in parts if part.tail.hidden is not None])
        batch = Batch.build(spans, self._kv.page_tokens, model.device)
        hidden = model.layers(first, end, hidden, batch, self._kv)
        if end == model.num_layers:
            self._score(parts, spans, hidden, scores)  # before the tails go on: what fails is done once more
        states: list[torch.Tensor | None] = []
        of_each = torch.split(hidden, [span.num_tokens for span in spans])
        for part, span, rows in zip(parts, spans, of_each, strict=True):
            part.tail.hidden, part.tail.next_layer = rows, end
            at_end = end == model.num_layers and part.tail.computed(span.num_tokens)
            states.append(rows[-1:] if at_end else None)
        return states

    def _generate(
        self,
        batch: Sequence[RequestPart],
        rows: Sequence[RequestPart],
        states: Sequence[tuple[RequestPart, torch.Tensor]],
        outcome: StepOutcome,
    ) -> None:
        results = outcome.results
        try:
            results.update(self._compute([*batch, *rows], states, outcome.scores))
            return
        except RuntimeError as error:
            if len(batch) + len(rows) + len(states) == 1 or not (rows or states):
                results.update((part.request, error) for part in (*batch, *rows, *(part for part, _ in states)))
                return
        # K and V of a step may be written once more: the batch as a whole, and who fails alone fails alone.
        self._generate(batch, (), (), outcome)
        for part in rows:
            self._generate((), [part], (), outcome)
        for state in states:
            self._generate((), (), [state], outcome)

    def _compute(
        self,
        parts: Sequence[RequestPart],
        states: Sequence[tuple[RequestPart, torch.Tensor]],
        scores: Scores,
    ) -> dict[Request, Result]:
        """Run rows through the model and sample what follows each that is at its end, `states` among them."""
        spans = [span_of(part) for part in parts]
        results: dict[Request, Result] = dict.fromkeys((part.request for part in parts), None)
        hidden, ended = [state for _, state in states], [part for part, _ in states]
        at_end = [
            i for i, (part, span) in enumerate(zip(parts, spans, strict=True)) if span.end == len(part.request.tokens)
        ]
        results.update((parts[i].request, PromptComputed()) for i in at_end if not parts[i].request.wants_token)
        at_end = [i for i in at_end if parts[i].request.wants_token]
        if parts:
            after = self._states(parts, spans, scores)
            if at_end and after.logits is not None:
                sampled = self._sample_captured(after, at_end, [row_of(parts[i].request) for i in at_end])
                results.update(zip((parts[i].request for i in at_end), sampled, strict=True))
            elif at_end:
                hidden.append(self._picked(after.hidden, at_end))
                ended += [parts[i] for i in at_end]
        if ended:
            logits = self._transformer.logits(hidden[0] if len(hidden) == 1 else torch.cat(hidden))
            sampled = self._chooser.choose(logits, [row_of(part.request) for part in ended])
            results.update(zip((part.request for part in ended), sampled, strict=True))
        elif not at_end:
            self._transformer.wait()  # pages that a request leaves after this step are not touched any more
        for part in parts:
            if part.holding.tail is not None:
                part.holding.tail.computed(part.num_tokens)
        return results

    def _states(self, parts: Sequence[RequestPart], spans: Sequence[Span], scores: Scores) -> StepStates:
        """Run rows through the model, and tell of the prompts among them that ask for it."""
        ids = _tokens(parts, spans)
        if not any(part.request.unscored for part in parts):
            return self._transformer.step(ids, spans, self._kv)
        hidden = self._transformer.states(ids, spans, self._kv)
        self._score(parts, spans, hidden, scores)
        ends = list(itertools.accumulate(span.num_tokens for span in spans))
        return StepStates(hidden[self._ids([end - 1 for end in ends])])

    def _score(self, parts: Sequence[RequestPart], spans: Sequence[Span], hidden: torch.Tensor, scores: Scores) -> None:
        """Tell of each prompt's tokens that follow rows of `hidden`, which lie span after span."""
        model, first = self._transformer, 0
        for part, span in zip(parts, spans, strict=True):
            asked, request = part.request.unscored, part.request
            start, end = max(asked.start, span.start), min(asked.stop, span.end)
            if start < end and request.generation.scoring is not None:
                states = hidden[first + start - span.start : first + end - span.start]
                followed_by = request.tokens[start + 1 : end + 1]
                num_top = request.generation.scoring.num_top
                scores[request] = score(model.logits, states, followed_by, model.config.vocab_size, num_top)
            first += span.num_tokens

    def _sample_captured(self, after: StepStates, at_end: Sequence[int], rows: Sequence[Row]) -> Sequence[Choice]:
        """Return the tokens after the spans of these numbers, where their logits have come with the step."""
        assert after.logits is not None, "logits that have not come"
        if after.best is not None and all(map(takes_best, rows)):
            best = after.best()
            return [Sampled(best[i], None) for i in at_end]
        return self._chooser.choose(self._picked(after.logits, at_end), rows)

    def _picked(self, rows: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return rows if len(numbers) == len(rows) else rows[self._ids(numbers)]

    def _ids(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._transformer.device)


def copy_beginnings(rows: Iterable[RequestPart], kv: PagedKv) -> None:
    """Copy what tails begin with before their first token is computed."""
    for part in rows:
        if part.tail.copy is not None:
            part.tail.copy.run(kv)
            part.tail.copy = None


def span_of(part: RequestPart, num_tokens: int | None = None) -> Span:
    """Return a part's next rows, as many as it has in the step unless it is said: of its tail, or its last token."""
    tables, tail = part.holding.reservation.tables, part.holding.tail
    if tail is None:
        return Span(tables, len(part.request.tokens) + part.request.num_coming - 1, 1)
    return Span(tables, tail.first, part.num_tokens if num_tokens is None else num_tokens, tail.stores)


def tokens_of(part: RequestPart, span: Span) -> list[int]:
    return part.request.tokens[span.start : span.end]


def _tokens(parts: Iterable[RequestPart], spans: Iterable[Span]) -> list[int]:
    return [token for part, span in zip(parts, spans, strict=True) for token in tokens_of(part, span)]


def row_of(request: Request) -> Row:
    generation = request.generation
    params = generation.sampling
    if request.history is None and params.has_penalties:
        num_prompt_tokens = len(generation.token_ids) - generation.num_generated_before
        request.history = TokenHistory(request.tokens, num_prompt_tokens)
    may_end = request.num_generated >= params.min_tokens
    return Row(params, len(request.tokens), may_end, request.history, generation.guide, request.num_answered)
