"""Which chunks of which prompts make up the next step. Pure: it decides, the engine acts."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from shared.engine.packing import Offer, pack
from shared.engine.urgency import Urgency, sharing


@dataclass(eq=False)
class Job:
    """A prompt's tokens `[next_token, end)` that are still to be computed."""

    next_token: int
    end: int
    urgency: Urgency
    limit: Callable[[], int] = lambda: sys.maxsize  # how far it may be computed now; a chunk goes no further

    @property
    def num_tokens(self) -> int:
        """How many tokens may be computed now."""
        return max(0, min(self.end, self.limit()) - self.next_token)


J = TypeVar("J", bound=Job)


class Chunk(NamedTuple, Generic[J]):
    """Tokens `[first, end)` of a job, to be run through all layers at once."""

    job: J
    first: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.first


class PrefillScheduler(Generic[J]):
    """Fills steps of at most `chunk_tokens` tokens: the most urgent prompts first, at most one chunk of each.

    A long prompt takes whole steps; what a short one or the end of a long one leaves of a step is filled with the next
    prompts in order, but none that stands back beside one that does not. A step of prompts that stand back is smaller:
    more urgent ones that come meanwhile wait for its end. Holds every job from `add` until `finished` says it has no
    tokens left, or `remove`.
    """

    def __init__(self, chunk_tokens: int, yielding_tokens: int | None = None) -> None:
        """`yielding_tokens`: of a step of prompts that stand back; None: as of all."""
        self._chunk_tokens = chunk_tokens
        self._yielding_tokens = chunk_tokens if yielding_tokens is None else yielding_tokens
        self.jobs: list[J] = []  # in order of arrival, which decides between equals

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, job: J) -> None:
        self.jobs.append(job)

    def remove(self, job: J) -> None:
        """Forget a job; nothing happens when it is not here."""
        if job in self.jobs:
            self.jobs.remove(job)

    def next_step(self) -> list[Chunk[J]]:
        """Return what to compute now; empty if no job may go on. Changes nothing: call `finished` for each chunk."""
        ready = sorted((job for job in self.jobs if job.num_tokens), key=lambda job: job.urgency.rank)
        if not ready:
            return []
        size = self._yielding_tokens if ready[0].urgency.stands_back else self._chunk_tokens
        offers = (Offer(job, job.num_tokens, 0, 1) for job in sharing(ready, lambda job: job.urgency))
        packed = pack(offers, size, num_layers=1)
        return [Chunk(job, job.next_token, job.next_token + taken) for job, taken in packed.rows]

    def finished(self, chunk: Chunk[J]) -> bool:
        """Note that a chunk was computed; return whether that was the job's last one."""
        chunk.job.next_token = chunk.end
        if chunk.end < chunk.job.end:
            return False
        self.remove(chunk.job)
        return True
