"""A prefill worker: one step at a time, chunks of the prompts in order of arrival."""

import sys
from collections import deque

from simulator.engines.costs import StepTime
from simulator.engines.meter import WorkMeter
from simulator.engines.work import PackedStep, PromptJob, advance, packed
from simulator.events import EventLoop, SimTimer


class SimulatedPrefill:
    """Computes prompts with the cost of its hardware, `slowdown` times as slow as that says.

    `prompts_per_step` 1: one prompt after another, as throughput models have it.
    """

    def __init__(self, loop: EventLoop, cost: StepTime, step_tokens: int, prompts_per_step: int = sys.maxsize) -> None:
        self.cost = cost
        self.step_tokens = step_tokens
        self.prompts_per_step = prompts_per_step
        self.slowdown = 1.0
        self.works: deque[PromptJob] = deque()
        self.meter = WorkMeter(loop)
        self._loop = loop
        self._step: SimTimer | None = None

    @property
    def num_running(self) -> int:
        """Prompts in the step."""
        return sum(1 for work in self.works if work.is_open)

    @property
    def num_waiting(self) -> int:
        return len(self.works) - self.num_running

    def add(self, work: PromptJob) -> None:
        self.meter.arrived()
        self.works.append(work)
        if self._step is None:
            self._begin()

    def stop(self) -> None:
        """Forget everything: the worker is lost. Nobody is told."""
        self.works.clear()
        if self._step is not None:
            self._step.cancel()
            self._step = None
            self.meter.idle()

    def _begin(self) -> None:
        step = packed(self.works, self.step_tokens, self.prompts_per_step)
        seconds = 0.0
        if step.num_tokens:
            seconds = self.slowdown * self.cost.step_s(step.num_tokens, step.num_pairs)
        end_s = self._loop.now_s + seconds
        self.meter.busy()
        self._step = self._loop.at(end_s, lambda: self._end(step))
        for work, first, end in step.chunks:
            if work.stepped is not None:
                work.stepped(first, end, end_s)

    def _end(self, step: PackedStep) -> None:
        self._step = None
        finished = list(advance(self.works, step))
        if self.works:
            self._begin()
        else:
            self.meter.idle()
        for work in finished:
            work.computed()
