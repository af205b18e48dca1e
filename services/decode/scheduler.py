"""Who gets pages, who gives them up and who computes next: a decode worker's policy. No torch, no asyncio, no clock."""

from bisect import insort
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from shared.engine.urgency import AGEING, Urgency

SHORT_HEAD_START_S = 60.0
"""A short tail goes before those that came up to so long before it: a long one is reached in bounded time."""

SHORT_HEAD_START = SHORT_HEAD_START_S * (1 + AGEING)  # in ranks, of prompts with the same time until their deadlines


class Rank(NamedTuple):
    """A request's place: lower goes first. It keeps its place when it is pre-empted."""

    priority: int  # as in vLLM: lower goes first
    arrival: int  # numbers requests as they come


class Schedulable(Protocol):
    @property
    def rank(self) -> Rank: ...

    @property
    def urgency(self) -> Urgency: ...

    @property
    def is_short(self) -> bool:
        """Of one with a tail: whether next to nothing of it is left to compute."""


R = TypeVar("R", bound=Schedulable)
R_contra = TypeVar("R_contra", bound=Schedulable, contravariant=True)


class PageMemory(Protocol[R_contra]):
    """Memory as the policy sees it. A call that returns False has changed nothing."""

    def reserve(self, request: R_contra, num_growing: int, /) -> bool:
        """Hold pages for the tokens that a waiting request has and one more; leave one for each that grows."""

    def extend(self, request: R_contra, /) -> bool:
        """Hold a page for the next token of a running request, if it has none for it yet."""

    def give_up(self, request: R_contra, /) -> None:
        """Let go of a request's pages: at once, or when the last who reads them has done so."""

    def would_fit(self, request: R_contra, others: Sequence[R_contra], /) -> bool:
        """Whether `request` would get its pages if nobody but `others` held any. An estimate."""

    @property
    def returning(self) -> bool:
        """Whether pages that were given up are on their way back."""


class DecodeScheduler(Generic[R]):
    """Keeps every live request in one of three lists: waiting (holds no pages), tails (its prompt's end is still to be
    computed) and running (gets one token a step).

    - Admission is strictly in rank order: who does not fit is not overtaken, so a long prompt is not starved. It leaves
      a page for each running request of a lower rank: who is admitted into the last ones is the first to lose them.
    - When a running request finds no page for its next token, the request with the greatest rank that holds pages is
      pre-empted: the lowest priority, of these the last that arrived. It may be the needy one itself.
    - A waiting request pre-empts only requests of a lower priority, and only if that makes room enough.
    - While pages are on their way back, or while a step is under way, nobody is pre-empted; the needy one sits out a
      step, and `held_back` says so.

    Progress: pre-emption goes from a lower to a greater rank only, so that two requests cannot pre-empt each other.
    Requests of one priority hold pages in the order of arrival: all that hold came before all that wait. Therefore the
    first of all ranks, once it waits for nothing but pages, gets those of everybody else in the end, keeps its own, and
    finishes, since the caller admits only what fits alone. Then another one is first. A low priority waits as long as
    higher ones keep coming.
    """

    def __init__(self, pages: PageMemory[R], max_batch: int) -> None:
        self._pages = pages
        self._max_batch = max_batch
        self.waiting: list[R] = []  # in rank order
        self.tails: list[R] = []  # in order of admission
        self.running: list[R] = []
        self.held_back = False  # somebody would have been pre-empted, had it been allowed

    @property
    def num_holding(self) -> int:
        return len(self.tails) + len(self.running)

    def add(self, request: R) -> None:
        insort(self.waiting, request, key=_rank)

    def remove(self, request: R) -> None:
        """Forget a request, wherever it is; its pages are the caller's business. Idempotent."""
        for listed in (self.waiting, self.tails, self.running):
            if request in listed:
                listed.remove(request)

    def put_back(self, request: R) -> None:
        """Let a request wait again that holds no pages any more."""
        self.remove(request)
        self.add(request)

    def join(self, request: R) -> None:
        """Let a request whose tail is computed run, from the next step on."""
        self.tails.remove(request)
        self.running.append(request)

    def turns(self) -> list[R]:
        """Return the tails in the order of their turns: the most urgent first, as prefill workers have it.

        Short ones have a head start. They are the ends of prompts that were computed elsewhere: a step hardly notices
        them, and a whole prompt before them would be all that they wait for.
        """
        return sorted(self.tails, key=_turn)

    def schedule(self, *, may_preempt: bool = True) -> list[R]:
        """Find pages for the next step, pre-empt and admit. Return the running requests that have their pages.

        Without `may_preempt` everybody keeps what they have: a step that reads it is under way.
        """
        self.held_back = False
        stalled, num_preempted = self._grow(may_preempt)
        if not num_preempted:  # else the victim would be admitted into what is left of its own pages
            self._admit(may_preempt)
        return [request for request in self.running if request not in stalled]

    def _grow(self, may_preempt: bool) -> tuple[list[R], int]:
        """Extend in rank order. Return who must sit out this step, and how many were pre-empted."""
        stalled: list[R] = []
        num_preempted = 0
        for request in sorted(self.running, key=_rank):
            while request in self.running and not self._pages.extend(request):
                if not may_preempt or self._pages.returning or self.num_holding == 1:
                    self.held_back |= not may_preempt
                    stalled.append(request)
                    break
                self._preempt(max(self.tails + self.running, key=_rank))
                num_preempted += 1
        return stalled, num_preempted

    def _admit(self, may_preempt: bool) -> None:
        while self.waiting:
            head = self.waiting[0]
            num_growing = sum(request.rank < head.rank for request in self.running)
            if self.num_holding < self._max_batch and self._pages.reserve(head, num_growing):
                self.tails.append(self.waiting.pop(0))
                continue
            victim = self._outranked_by(head)
            if victim is None or self._pages.returning or not may_preempt:
                self.held_back |= victim is not None and not may_preempt
                return
            self._preempt(victim)

    def _outranked_by(self, request: R) -> R | None:
        """Return who gives way to a waiting request; None when nobody does, or when all who do would not be enough."""
        holding = self.tails + self.running
        equals = [other for other in holding if other.rank.priority <= request.rank.priority]
        if len(equals) == len(holding) or len(equals) >= self._max_batch:
            return None
        return max(holding, key=_rank) if self._pages.would_fit(request, equals) else None

    def _preempt(self, victim: R) -> None:
        self.put_back(victim)
        self._pages.give_up(victim)


def _rank(request: Schedulable) -> Rank:
    return request.rank


def _turn(request: Schedulable) -> float:
    has_head_start = request.is_short and not request.urgency.stands_back
    return request.urgency.rank - (SHORT_HEAD_START if has_head_start else 0.0)
