"""What an engine tells of itself with `prfaas.load`."""

import time
from dataclasses import dataclass

from shared.bus.events import LoadEvent
from shared.engine.costs.steps import QueuedWork, StepCosts
from shared.ids import Epoch, WorkerId


@dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """An engine at one moment."""

    running: int
    waiting: int
    tokens_per_s: float
    queued: QueuedWork
    step_tokens: int
    arrivals_per_s: float
    hand_over_bytes_per_s: float
    context_tokens: int = 0
    max_batch: int = 0  # 0: as many as there is memory for
    answer_tokens: float = 0.0

    def event(self, worker: WorkerId, epoch: Epoch, kv_usage: float, costs: StepCosts) -> LoadEvent:
        return LoadEvent(
            worker=worker,
            epoch=epoch,
            running=self.running,
            waiting=self.waiting,
            kv_usage=kv_usage,
            speed_tokens_per_s=self.tokens_per_s,
            at_ms=time.time_ns() // 1_000_000,
            step_profile=costs.profile,
            queued_s=self.queued.seconds,
            queued_tokens=self.queued.num_tokens,
            context_tokens=self.context_tokens,
            step_tokens=self.step_tokens,
            busy=costs.busy_with_prompts,
            arrivals_per_s=self.arrivals_per_s,
            hand_over_bytes_per_s=self.hand_over_bytes_per_s,
            max_batch=self.max_batch,
            answer_tokens=self.answer_tokens,
        )
