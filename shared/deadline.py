"""A point in time that a request must be done by, handed down through every wait."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import DeadlineExceeded


@dataclass(frozen=True, order=True)
class Deadline:
    """`at` is in seconds of `time.monotonic`; deadlines compare by it."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds left, never negative: what a timeout argument wants."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def earliest(self, other: "Deadline") -> "Deadline":
        return min(self, other)

    def check(self, what: str) -> None:
        """Raise DeadlineExceeded when it has passed; for work that never waits."""
        if self.expired:
            raise DeadlineExceeded(f"the deadline passed while {what}")

    @asynccontextmanager
    async def scope(self, what: str = "waiting") -> AsyncIterator[None]:
        """Cancel the body at the deadline and raise DeadlineExceeded; the body's own TimeoutError passes through."""
        timeout = asyncio.timeout(self.remaining())
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(f"the deadline passed while {what}") from None
