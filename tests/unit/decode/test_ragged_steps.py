"""The policy of whole steps in a model: pages, turns, gates, pace. Everybody ends, nobody waits beyond the bound."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from services.decode.scheduler import DecodeScheduler, Rank
from services.decode.steps.pace import StepPace
from services.decode.tail import Tail
from shared.engine.packing import MIN_TAIL_TOKENS, Offer, Packed, pack
from shared.engine.urgency import Urgency

PAGE, LAYERS, CHUNK = 4, 3, 64
SHORT = 8
STEP_S = 0.01


@dataclass(eq=False)
class Sequence:
    """A request, its pages as a number, and its tail as the engine has it."""

    rank: Rank
    urgency: Urgency
    prompt: int
    answer: int
    cached: int  # tokens that are fetched, layer by layer
    cancelled_at: int | None
    num_generated: int = 0
    num_pages: int = 0
    tail: Tail | None = None
    held_since: int = 0

    @property
    def num_tokens(self) -> int:
        return self.prompt + self.num_generated

    def open_layers(self, now: int) -> int:
        """A layer lands a step."""
        return min(LAYERS, now - self.held_since) if self.cached else LAYERS

    @property
    def is_short(self) -> bool:
        return self.tail is not None and self.tail.end - self.tail.first <= SHORT

    def work(self) -> int:
        """Return what is left of the tail, in tokens through one layer."""
        assert self.tail is not None
        in_hand = self.tail.chunk_end - self.tail.first
        return (self.tail.end - self.tail.first) * LAYERS - self.tail.next_layer * in_hand


@dataclass
class Pages:
    """The scheduler's memory: what is given up is free at once."""

    free: int
    now: int = 0
    given_up: list[Sequence] = field(default_factory=list)
    returning: bool = False

    def reserve(self, one: Sequence, num_growing: int, /) -> bool:
        needed = _pages(one.num_tokens + 1)
        if needed + num_growing > self.free:
            return False
        self._take(one, needed)
        one.tail, one.held_since = Tail(min(one.cached, one.num_tokens - 1), one.num_tokens, CHUNK), self.now
        return True

    def extend(self, one: Sequence, /) -> bool:
        missing = _pages(one.num_tokens) - one.num_pages
        if missing > self.free:
            return False
        self._take(one, max(0, missing))
        return True

    def give_up(self, one: Sequence, /) -> None:
        self.given_up.append(one)
        self.release(one)

    def release(self, one: Sequence) -> None:
        self.free += one.num_pages
        one.num_pages, one.tail = 0, None

    def would_fit(self, one: Sequence, others: Iterable[Sequence], /) -> bool:
        return _pages(one.num_tokens + 1) + sum(other.num_pages for other in others) <= self.free + sum(
            other.num_pages for other in self.holders
        )

    holders: list[Sequence] = field(default_factory=list)

    def _take(self, one: Sequence, count: int) -> None:
        self.free -= count
        one.num_pages += count


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE)


class Worker:
    """The engine's loop over all this, without a model: a step takes what its tokens cost."""

    def __init__(self, num_pages: int, max_batch: int) -> None:
        self.pages = Pages(num_pages)
        self.scheduler: DecodeScheduler[Sequence] = DecodeScheduler(self.pages, max_batch)
        self.pace = StepPace(CHUNK)
        self.live: list[Sequence] = []
        self.bounds: dict[Sequence, int] = {}  # of tails that could go on: the step by which they must have ended
        self.short: set[Sequence] = set()  # that have had their head start
        self.now = 0

    def step(self) -> None:
        self.pages.now = self.now
        self.pages.holders = [*self.scheduler.tails, *self.scheduler.running]
        num_given_up = len(self.pages.given_up)
        batch = self.scheduler.schedule()
        for one in self.pages.given_up[num_given_up:]:
            self.bounds.pop(one, None)
        turns = self.scheduler.turns()
        offers = [offer for one in turns if (offer := self._offer(one)) is not None]
        self._set_bounds(turns)
        budget = self.pace.tail_tokens(len(batch), len(offers))
        packed = pack(offers, budget, LAYERS)
        tail_tokens = self._advance(packed)
        assert bool(offers) == bool(tail_tokens), "whoever is first goes on"
        assert tail_tokens <= max(budget, CHUNK / LAYERS), "a step keeps to its budget"
        self.pace.cost.measured(len(batch), tail_tokens, STEP_S * (1 + 0.1 * len(batch) + 0.05 * tail_tokens))
        for one in batch:
            self._generate(one)  # whatever else was in the step
        self.now += 1

    def end(self, one: Sequence) -> None:
        self.scheduler.remove(one)
        self.pages.release(one)
        self.live.remove(one)
        self.bounds.pop(one, None)

    def _offer(self, one: Sequence) -> Offer[Sequence] | None:
        tail = one.tail
        assert tail is not None
        if one.open_layers(self.now) <= tail.next_layer:
            return None
        return Offer(one, tail.chunk_end - tail.first, tail.next_layer, one.open_layers(self.now))

    def _set_bounds(self, turns: list[Sequence]) -> None:
        """A tail whose layers are all open ends when the more urgent ones and it have had `MIN_TAIL_TOKENS` a step.

        What those in front leave of a step by being cut costs a step each, for each of their chunks; gates of those
        in front cost nothing. A tail that has become short, or has come as such, goes before those that were bounded.
        """
        for place, one in enumerate(turns):
            if one.is_short and one not in self.short:
                self.short.add(one)
                for other in turns[place + 1 :]:
                    if other in self.bounds:
                        self.bounds[other] += self._steps_of([one])
        for place, one in enumerate(turns):
            if one not in self.bounds and one.open_layers(self.now) == LAYERS:
                self.bounds[one] = self.now + self._steps_of(turns[: place + 1])

    @staticmethod
    def _steps_of(tails: list[Sequence]) -> int:
        chunks = sum((LAYERS + 1) * (1 + one.work() // (CHUNK * LAYERS)) for one in tails)
        return -(-sum(one.work() for one in tails) // (MIN_TAIL_TOKENS * LAYERS)) + chunks

    def _advance(self, packed: Packed[Sequence]) -> float:
        through_layers = 0
        for one, num_tokens in packed.rows:
            through_layers += num_tokens * LAYERS
            self._computed(one, num_tokens)
        for first, end, few in packed.passes:
            for one in few:
                tail = one.tail
                assert tail is not None
                assert tail.next_layer == first < end <= one.open_layers(self.now), "no layer before its gate"
                num_tokens = tail.chunk_end - tail.first
                through_layers += (end - first) * num_tokens
                tail.next_layer = end
                if end == LAYERS:
                    self._computed(one, num_tokens)
        return through_layers / LAYERS

    def _computed(self, one: Sequence, num_tokens: int) -> None:
        assert one.tail is not None
        if one.tail.computed(num_tokens):
            if one in self.bounds:
                assert self.now <= self.bounds.pop(one), "waited longer than the bound"
                event("a bound was kept")
            one.tail = None
            self.scheduler.join(one)
            self._generate(one)

    def _generate(self, one: Sequence) -> None:
        one.num_generated += 1
        if one.num_generated == one.answer:
            self.end(one)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 4),  # steps since the one before
        st.integers(1, 150),  # tokens of the prompt
        st.integers(1, 30),  # tokens to generate
        st.sampled_from([0, 0, 8, 40]),  # tokens that are fetched
        st.sampled_from([None, None, None, 5, 15]),  # steps until it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200)
@given(arrivals=ARRIVALS, spare_pages=st.integers(0, 40), max_batch=st.integers(1, 8))
def test_everybody_ends_and_no_tail_waits_beyond_the_bound(
    arrivals: list[Any], spare_pages: int, max_batch: int
) -> None:
    worker = Worker(max(_pages(prompt + answer) for _, prompt, answer, _, _ in arrivals) + spare_pages, max_batch)
    total, step, coming = worker.pages.free, 0, []
    for number, (gap, prompt, answer, cached, cancelled_after) in enumerate(arrivals):
        step += gap
        cancelled_at = None if cancelled_after is None else step + cancelled_after
        cached = cached if cached < prompt else 0
        coming.append((step, Sequence(Rank(0, number), Urgency(number, 100.0), prompt, answer, cached, cancelled_at)))
    for _ in range(step + sum(30 + prompt + answer for _, prompt, answer, _, _ in arrivals) * (len(arrivals) + 1)):
        while coming and coming[0][0] <= worker.now:
            one = coming.pop(0)[1]
            worker.live.append(one)
            worker.scheduler.add(one)
        for one in [one for one in worker.live if one.cancelled_at is not None and one.cancelled_at <= worker.now]:
            worker.end(one)
        if not worker.live and not coming:
            break
        worker.step()
        assert worker.pages.free + sum(one.num_pages for one in worker.live) == total
    assert not worker.live
    assert not coming
