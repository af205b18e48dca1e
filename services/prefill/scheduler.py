"""Which chunk of which prompt is computed next. Pure: it decides, the engine acts."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(eq=False)
class Job:
    """A prompt's tokens `[next_token, end)` that are still to be computed."""

    next_token: int
    end: int


class Chunk(NamedTuple):
    """Tokens `[first, end)` of a job, to be run through all layers at once."""

    job: Job
    first: int
    end: int


class Scheduler:
    """First come, first served, in chunks of at most `chunk_tokens`.

    Holds every job from `add` until `finished_chunk` says it has no tokens left, or `remove`.
    """

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Forget a job; nothing happens when it is not here."""
        if job in self._jobs:
            self._jobs.remove(job)

    def next_chunk(self) -> Chunk | None:
        """Return the chunk to compute now, or None. Changes nothing: call `finished_chunk` when it is done."""
        if not self._jobs:
            return None
        job = self._jobs[0]
        return Chunk(job, job.next_token, min(job.end, job.next_token + self._chunk_tokens))

    def finished_chunk(self, chunk: Chunk) -> bool:
        """Note that a chunk was computed; return whether that was the job's last one."""
        chunk.job.next_token = chunk.end
        if chunk.end < chunk.job.end:
            return False
        self.remove(chunk.job)
        return True
