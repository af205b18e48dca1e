"""Steps that are launched before the step before is read: the host works while the device computes. Every method but
`can_launch` runs in the torch thread."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from services.decode.holding import Holding
from services.decode.request import Request
from services.decode.steps.runner import (
    DecodeStep,
    RequestPart,
    Result,
    StepOutcome,
    copy_beginnings,
    row_of,
    span_of,
    tokens_of,
)
from services.decode.tail import Tail
from shared.engine.costs.steps import StepWork
from shared.model.layers.states import StepStates
from shared.model.pages.kv import PagedKv
from shared.model.sampler.sampling import Sampled, takes_best
from shared.model.transformer import Transformer

NUM_STEPS_LATELY = 16


@dataclass
class StepInHand:
    """A planned step from its launch until its tokens are handed out. The loop's."""

    step: DecodeStep
    started_s: float  # when planning it began
    tails: list[tuple[RequestPart, Tail, int]]  # and where each tail stood
    work: StepWork
    holdings: list[Holding]
    flight: "Flight | None" = None  # None: it is not launched before it is waited for

    @classmethod
    def of(cls, step: DecodeStep, started_s: float, num_layers: int) -> "StepInHand":
        tails = [(part, part.tail, part.tail.first) for part in step.tails]
        return cls(step, started_s, tails, step.work(num_layers), step.holdings)

    def has_rows_of(self, request: Request) -> bool:
        """Whether rows of a tail are in it."""
        return any(part.request is request for part in self.step.rows)

    def count_coming(self, change: int) -> None:
        """Note that the tokens which it brings are on their way, or no more."""
        for request in () if self.flight is None else self.flight.numbers:
            request.num_coming += change


class Flight(NamedTuple):
    """A step on its way through the device."""

    after: StepStates
    parts: Sequence[RequestPart]
    numbers: Mapping[Request, int]  # of spans that a token follows
    launched_s: float


class AheadRunner:
    """Launches steps whose tokens are the best ones: the device takes them from one step to the next by itself.

    Requests say by `num_coming` how many of their tokens are on their way. At most two steps are under way at a time.
    """

    def __init__(self, transformer: Transformer, kv: PagedKv) -> None:
        self._transformer = transformer
        self._kv = kv
        self._read_s = 0.0  # when the last step was
        self._lately_s: deque[float] = deque(maxlen=NUM_STEPS_LATELY)

    @property
    def shortest_s(self) -> float:
        """What the shortest of the latest steps took; 0 as long as there was none."""
        return min(self._lately_s, default=0.0)

    def can_launch(self, step: DecodeStep) -> bool:
        """Whether the device can do a step without the host."""
        parts = [*step.batch, *step.rows]
        if step.passes or not parts:
            return False
        spans = [span_of(part) for part in parts]
        if not self._transformer.is_captured(spans, self._kv):
            return False
        if any(part.request.unscored or not part.request.wants_token for part in step.rows):
            return False
        ending = (part for part, span in zip(parts, spans, strict=True) if ends_with_token(part, span.end))
        return all(takes_best(row_of(part.request)) for part in ending)

    def launch_and_read(self, hand: StepInHand | None, before: StepInHand | None) -> StepOutcome | None:
        """Launch a step, if there is one, then wait for the one before, if there is one, and return its outcome.

        What could not be launched has no flight.
        """
        flight = None if before is None else before.flight
        if hand is not None:
            with suppress(RuntimeError):
                hand.flight = self._launch(hand.step, flight)
        return None if flight is None else self._read(flight)

    def _launch(self, step: DecodeStep, before: Flight | None) -> Flight:
        """Queue a step behind the one `before`, whose tokens need not be known. Raises `RuntimeError` as torch does."""
        started = time.perf_counter()
        parts = [*step.batch, *step.rows]
        spans = [span_of(part) for part in parts]
        ids: list[int] = []
        for part, span in zip(parts, spans, strict=True):
            if part.request.num_coming:
                assert before is not None, "a token that comes from no step"
                ids.append(~before.numbers[part.request])
            else:
                ids += tokens_of(part, span)
        copy_beginnings(step.rows, self._kv)
        after = self._transformer.step(ids, spans, self._kv)
        numbers = {
            part.request: i
            for i, (part, span) in enumerate(zip(parts, spans, strict=True))
            if ends_with_token(part, span.end)
        }
        for part in step.rows:
            part.tail.computed(part.num_tokens)
        return Flight(after, parts, numbers, started)

    def _read(self, flight: Flight) -> StepOutcome:
        """Wait for a step. Errors of the device concern all that was in it."""
        results: dict[Request, Result] = dict.fromkeys((part.request for part in flight.parts), None)
        assert flight.after.best is not None, "a step that was not captured"
        try:
            best = flight.after.best()
            results.update((request, Sampled(best[number], None)) for request, number in flight.numbers.items())
        except RuntimeError as error:
            results = dict.fromkeys(results, error)
        began_s, self._read_s = max(flight.launched_s, self._read_s), time.perf_counter()
        self._lately_s.append(self._read_s - began_s)
        return StepOutcome(results, model_s=self._read_s - began_s)


def ends_with_token(part: RequestPart, end: int) -> bool:
    """Whether a part whose rows end at `end` is followed by a token that is not known yet."""
    return end == len(part.request.tokens) + part.request.num_coming
