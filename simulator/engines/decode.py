"""A decode worker with continuous batching: every running request gets a token in each step.

Steps without prompt tokens are not simulated one by one. Their times form an arithmetic series, because each step adds
one token to the context of each request: the worker leaps to the step in which somebody ends or a prompt may join.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from shared.engine.packing import MIN_TAIL_TOKENS
from shared.measuring.rates import RecentMean
from simulator.engines.costs import StepTime
from simulator.engines.meter import WorkMeter
from simulator.engines.work import PackedStep, PromptJob, advance, packed
from simulator.events import EventLoop, SimTimer


class DecodeRequest(PromptJob):
    """A prompt whose rest is computed here and which then grows by `num_output` tokens, the first with its last chunk.

    `started` and `ended` are called when the first and the last token exist.
    """

    __slots__ = ("ended", "num_left", "num_output", "started")

    def __init__(
        self,
        end: int,
        num_output: int,
        opened: Callable[[], int],
        started: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(end, opened, started)
        self.started = started
        self.ended = ended
        self.num_output = max(1, num_output)
        self.num_left = self.num_output  # tokens still to come, once its worker has been lost

    @property
    def most_tokens(self) -> int:
        """Tokens of context when it ends."""
        return self.end + self.num_output


class DecodeLimits(NamedTuple):
    """How much a decode worker does at a time."""

    step_tokens: int  # of prompts, in a step
    max_batch: int  # requests
    kv_tokens: float = math.inf  # of context
    inter_token_s: float = math.inf  # of a step with prompts beside a batch
    block_tokens: int = 1  # no more than so many tokens of a prompt go before whole prompts


class SimulatedDecode:
    """Requests wait until the batch and the KV memory have room, in order; then their prompts' rests are computed in
    chunks, beside a token for each running request. Short rests go first.

    Memory is reserved for the whole answer at once: nobody is pre-empted, as real workers do when they guess too low.
    """

    def __init__(self, loop: EventLoop, cost: StepTime, limits: DecodeLimits) -> None:
        self.cost = cost
        self.limits = limits
        self.slowdown = 1.0
        self.meter = WorkMeter(loop)
        self.waiting: deque[DecodeRequest] = deque()
        self.works: deque[PromptJob] = deque()  # whose prompts are being computed
        self.answer_tokens = RecentMean()
        self.num_steps = 0
        self.context_tokens = 0
        self._loop = loop
        self._rows: list[tuple[int, int, DecodeRequest]] = []  # heap by the step after which each ends
        self._num_joined = 0
        self._reserved = 0
        self._timer: SimTimer | None = None
        self._leap: tuple[float, float, float, int] | None = None  # when it began, first step, growth, steps

    @property
    def num_running(self) -> int:
        return len(self._rows) + len(self.works)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def kv_usage(self) -> float:
        """The share of the KV memory that is reserved, from 0 to 1."""
        return min(1.0, self._reserved / self.limits.kv_tokens)

    def prompt_tokens_of_step(self) -> int:
        """Return how many tokens of prompts the next step computes at most beside the batch."""
        limits, rows = self.limits, self.num_rows
        if not rows or limits.inter_token_s == math.inf:
            return limits.step_tokens
        alone_s = self.cost.step_s(0.0, 0.0, rows, self.context_tokens)
        seen = self.works[0].first_left if self.works else 0
        token_s = self.cost.step_s(1.0, seen + 1.0, rows, self.context_tokens) - alone_s
        wanted = (limits.inter_token_s - alone_s) / token_s if token_s > 0 else math.inf
        return int(max(MIN_TAIL_TOKENS, min(limits.step_tokens, wanted)))

    def add(self, request: DecodeRequest) -> None:
        self.meter.arrived()
        self.waiting.append(request)
        if self._timer is None:
            self._begin()
        elif self._leap is not None and self._has_room():
            self._cut_leap()

    def stop(self) -> None:
        """Forget everything: the worker is lost. Nobody is told; `num_left` of each says how far it was."""
        done = self._steps_done()
        for end, _, request in self._rows:
            request.num_left = end - done
        self.waiting.clear()
        self.works.clear()
        self._rows.clear()
        self.context_tokens = self._reserved = 0
        self._leap = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.meter.idle()

    def _steps_done(self) -> int:
        """Return the steps that are over, those of the leap under way included."""
        if self._leap is None:
            return self.num_steps
        passed_s = self._loop.now_s - self._leap[0]
        return self.num_steps + max(0, self._steps_until(passed_s) - 1)

    def _has_room(self) -> bool:
        if not self.waiting or self.num_running >= self.limits.max_batch:
            return False
        return self._reserved + self.waiting[0].most_tokens <= self.limits.kv_tokens or not self.num_running

    def _begin(self) -> None:
        """Start the next step, or a leap over steps that are alike; at a boundary of steps."""
        while self._has_room():
            request = self.waiting.popleft()
            self._reserved += request.most_tokens
            if request.end - request.first_left <= self.limits.block_tokens:
                self.works.appendleft(request)
            else:
                self.works.append(request)
        if self.works:
            self._begin_step()
        elif self._rows:
            self._begin_leap()
            self.meter.idle()  # of prompts
        else:
            self.meter.idle()

    def _begin_step(self) -> None:
        step = packed(self.works, self.prompt_tokens_of_step())
        rows = self.num_rows
        seconds = self.cost.step_s(step.num_tokens, step.num_pairs, rows, self.context_tokens)
        without = self.cost.step_s(0.0, 0.0, rows, self.context_tokens)
        self.meter.busy(1 - without / seconds if seconds > 0 else 0.0)
        self._timer = self._loop.after(self.slowdown * seconds, lambda: self._end_step(step))

    def _end_step(self, step: PackedStep) -> None:
        self._timer = None
        ended = self._count_steps(1)
        started = []
        for work in advance(self.works, step):
            assert isinstance(work, DecodeRequest)
            started.append(work)
            if work.num_output == 1:
                self._end_answer(work)
                ended.append(work)
                continue
            self._num_joined += 1
            self.context_tokens += work.end + 1
            heapq.heappush(self._rows, (self.num_steps + work.num_output - 1, self._num_joined, work))
        self._begin()
        for work in started:
            work.started()
        for work in ended:
            work.ended()

    def _begin_leap(self) -> None:
        rows = self.num_rows
        first = self.cost.step_s(0.0, 0.0, rows, self.context_tokens)
        growth = self.cost.step_s(0.0, 0.0, rows, self.context_tokens + rows) - first
        steps = self._rows[0][0] - self.num_steps
        self._leap = (self._loop.now_s, self.slowdown * first, self.slowdown * growth, steps)
        self._timer = self._loop.after(self._seconds(steps), lambda: self._end_leap(steps))

    def _seconds(self, steps: int) -> float:
        """Return what the first so many steps of the leap take."""
        assert self._leap is not None
        _, first, growth, _ = self._leap
        return steps * first + growth * steps * (steps - 1) / 2

    def _cut_leap(self) -> None:
        """End the leap with the step that is under way."""
        assert self._leap is not None
        assert self._timer is not None
        began_s = self._leap[0]
        steps = self._steps_until(self._loop.now_s - began_s)
        self._timer.cancel()
        self._timer = self._loop.at(began_s + self._seconds(steps), lambda: self._end_leap(steps))

    def _steps_until(self, passed_s: float) -> int:
        """Return the leap's steps up to that which is under way after so many seconds; at least 1."""
        assert self._leap is not None
        _, first, growth, steps = self._leap
        low, high = 1, steps
        if growth >= 0 and first > 0:
            high = max(1, min(high, int(passed_s / first) + 1))  # steps do not get shorter
        while low < high:
            middle = (low + high) // 2
            if self._seconds(middle) >= passed_s:
                high = middle
            else:
                low = middle + 1
        return low

    def _end_leap(self, steps: int) -> None:
        self._timer = self._leap = None
        ended = self._count_steps(steps)
        self._begin()
        for request in ended:
            request.ended()

    def _count_steps(self, steps: int) -> list[DecodeRequest]:
        """Give each running request so many tokens; return those that have all of theirs."""
        self.num_steps += steps
        self.context_tokens += steps * self.num_rows
        ended = []
        while self._rows and self._rows[0][0] <= self.num_steps:
            request = heapq.heappop(self._rows)[2]
            self.context_tokens -= request.most_tokens
            self._end_answer(request)
            ended.append(request)
        return ended

    def _end_answer(self, request: DecodeRequest) -> None:
        self._reserved -= request.most_tokens
        self.answer_tokens.add(request.num_output)
