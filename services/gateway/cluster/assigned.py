"""What this gateway has given a worker to do, as far as the worker's reports do not show it yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shared.ids import WorkerId

EngineRole = Literal["decode", "prefill"]


class PromptWork(NamedTuple):
    """What a request's prompt makes a worker do, as predicted."""

    seconds: float = 0.0
    tokens: float = 0.0  # to be computed
    context_tokens: float = 0.0  # that the request then holds


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """One call. Made by `Registry.assign`, given back to `Registry.release`."""

    worker: WorkerId
    work: PromptWork
    at: float
    role: EngineRole | None = None  # as which the worker was called; None: it was not known
    row: int = -1  # in the fleet of that role
    lose: Callable[[], None] | None = None  # ends the call as one whose worker is lost


class Assigned:
    """The calls of this gateway to one worker. Each change takes a time that does not depend on how many they are."""

    def __init__(self) -> None:
        self._open: set[Assignment] = set()
        self.unreported_work = PromptWork()  # in sum
        self._unreported: dict[Assignment, None] = {}  # in the order in which they came

    @property
    def num_open(self) -> int:
        return len(self._open)

    def add(self, assignment: Assignment) -> None:
        self._open.add(assignment)
        self._unreported[assignment] = None
        had, new = self.unreported_work, assignment.work
        self.unreported_work = PromptWork(
            had.seconds + new.seconds, had.tokens + new.tokens, had.context_tokens + new.context_tokens
        )

    def remove(self, assignment: Assignment) -> None:
        self._open.remove(assignment)
        if assignment not in self._unreported:
            return
        del self._unreported[assignment]
        had, gone = self.unreported_work, assignment.work
        # Sums of floats that are taken apart again keep a rest: not beyond the last call.
        self.unreported_work = (
            PromptWork(
                max(0.0, had.seconds - gone.seconds),
                max(0.0, had.tokens - gone.tokens),
                max(0.0, had.context_tokens - gone.context_tokens),
            )
            if self._unreported
            else PromptWork()
        )

    def lose(self) -> int:
        """End the calls that can be ended: their worker is lost. Returns how many there were."""
        losing = [assignment.lose for assignment in self._open if assignment.lose is not None]
        for lose in losing:
            lose()
        return len(losing)

    def reported(self, until: float) -> None:
        """A report has come that knows of what was sent until then."""
        if self._unreported:
            self._unreported = {assignment: None for assignment in self._unreported if assignment.at > until}
            works = [assignment.work for assignment in self._unreported]
            self.unreported_work = PromptWork(*map(sum, zip(*works, strict=True))) if works else PromptWork()
