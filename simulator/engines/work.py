"""Prompts on an engine, and how a step is packed from them. Pure."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from shared.step_profile import num_pairs


class PromptJob:
    """Tokens `[next_token, end)` of a prompt that an engine computes.

    `opened` is asked once, when the engine reaches the prompt, for the first token that no cache has: until then other
    prompts may have computed some. `stepped(first, end, at_s)` is told each chunk when its step begins, with the time
    at which that ends; `computed` is called when nothing is left.
    """

    __slots__ = ("computed", "end", "expected_first", "is_open", "next_token", "opened", "stepped")

    def __init__(
        self,
        end: int,
        opened: Callable[[], int],
        computed: Callable[[], None],
        stepped: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self.next_token = 0
        self.expected_first = 0  # what `opened` will return, as far as is known: load events count with it
        self.end = end
        self.is_open = False
        self.opened = opened
        self.computed = computed
        self.stepped = stepped

    def withdraw(self) -> None:
        """Compute no more than the step under way, and tell nobody."""
        self.end = self.next_token
        self.opened, self.computed, self.stepped = _first_token, _nothing, None

    @property
    def first_left(self) -> int:
        """The first token that is still to be computed, as far as is known."""
        return self.next_token if self.is_open else min(self.expected_first, self.end)


class StepChunk(NamedTuple):
    """Tokens `[first, end)` of a prompt, to be computed in one step."""

    work: PromptJob
    first: int
    end: int


class PackedStep(NamedTuple):
    """What a step computes of prompts."""

    chunks: list[StepChunk]
    num_tokens: int
    num_pairs: float


def packed(works: deque[PromptJob], step_tokens: int, most_prompts: int = sys.maxsize) -> PackedStep:
    """Fill a step in order of arrival, as engines do: only the last prompt is cut. Opens the prompts that it reaches.

    A prompt of which nothing is left gets an empty chunk.
    """
    chunks: list[StepChunk] = []
    total, pairs = 0, 0.0
    for work in works:
        if total >= step_tokens or len(chunks) >= most_prompts:
            break
        if not work.is_open:
            work.is_open = True
            work.next_token = min(work.opened(), work.end)
        end = min(work.end, work.next_token + step_tokens - total)
        chunks.append(StepChunk(work, work.next_token, end))
        total += end - work.next_token
        pairs += num_pairs(work.next_token, end)
    return PackedStep(chunks, total, pairs)


def advance(works: deque[PromptJob], step: PackedStep) -> Iterator[PromptJob]:
    """Note that a step is over; yield the prompts that it ended, which are no longer among `works`."""
    for chunk in step.chunks:
        chunk.work.next_token = max(chunk.end, chunk.work.next_token)
    while works and works[0].is_open and works[0].next_token >= works[0].end:
        yield works.popleft()


def _first_token() -> int:
    return 0


def _nothing() -> None:
    pass
