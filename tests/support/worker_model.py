"""A worker as admission sees it, in virtual time: one prompt at a time, in steps, the most urgent first."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from services.gateway.admission.window import DispatchWindow, UnderWay
from shared.tenant import Tenant


@dataclass(eq=False)
class ModelPrompt:
    """A prompt on its way, and the times that it has been given. `done` is called with its first token."""

    tenant: Tenant
    cost_s: float
    done: Callable[["ModelPrompt", float], None]
    priority: int = 0
    asked_at: float = 0.0
    ttft_s: float = -1.0
    left_s: float = 0.0
    under_way: UnderWay | None = None
    rank: tuple[int, int] = (0, 0)


@dataclass
class ModelWorker:
    """Serves what a window lets pass. `step_s`: how long it computes before it looks again who is the most urgent.

    `speed`: seconds of predicted work that it does in a second.
    """

    window: DispatchWindow[ModelPrompt]
    step_s: float = 0.05
    speed: float = 1.0
    now: float = 0.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    at_worker: list[ModelPrompt] = field(default_factory=list)
    _numbers: itertools.count = field(default_factory=itertools.count)
    _is_computing: bool = False

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self._numbers), what))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()

    def ask(self, prompt: ModelPrompt) -> None:
        prompt.asked_at, prompt.left_s = self.now, prompt.cost_s
        under_way = self.window.pass_now(prompt.tenant, prompt.cost_s, self.now)
        if under_way is None:
            self.window.queue.push(prompt.tenant, prompt.cost_s, prompt.priority, prompt)
            self._let_pass()
        else:
            self._take(prompt, under_way)

    def _let_pass(self) -> None:
        while (waiting := self.window.next(self.now)) is not None:
            self._take(waiting.item, self.window.start(waiting.tenant, waiting.cost_s, self.now))

    def _take(self, prompt: ModelPrompt, under_way: UnderWay) -> None:
        prompt.under_way = under_way
        prompt.rank = (self.window.priority_at_worker(under_way, prompt.priority), next(self._numbers))
        self.at_worker.append(prompt)
        if not self._is_computing:
            self._step()

    def _step(self) -> None:
        self._is_computing = bool(self.at_worker)
        if not self.at_worker:
            return
        prompt = min(self.at_worker, key=lambda prompt: prompt.rank)
        computed_s = min(prompt.left_s, self.step_s)
        self.at(self.now + computed_s / self.speed, lambda: self._stepped(prompt, computed_s))

    def _stepped(self, prompt: ModelPrompt, computed_s: float) -> None:
        prompt.left_s -= computed_s
        if prompt.left_s <= 1e-9:
            assert prompt.under_way is not None
            self.at_worker.remove(prompt)
            prompt.ttft_s = self.now - prompt.asked_at
            self.window.prompt_done(prompt.under_way, self.now)
            self.window.ended(prompt.under_way, self.now)
            self._let_pass()
            prompt.done(prompt, self.now)
        self._step()
