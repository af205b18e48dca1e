"""What this gateway has given a worker to do, as far as the worker's reports do not show it yet."""

from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Assigned:
    """The calls of this gateway to one worker."""

    num_open: int = 0
    unreported: list[Assignment] = field(default_factory=list)

    def add(self, assignment: Assignment) -> None:
        self.num_open += 1
        self.unreported.append(assignment)

    def remove(self, assignment: Assignment) -> None:
        self.num_open -= 1
        if assignment in self.unreported:
            self.unreported.remove(assignment)

    def reported(self, until: float) -> None:
        """A report has come that knows of what was sent until then."""
        if self.unreported:
            self.unreported = [assignment for assignment in self.unreported if assignment.at > until]

    @property
    def unreported_work(self) -> PromptWork:
        works = [assignment.work for assignment in self.unreported]
        return PromptWork(*map(sum, zip(*works, strict=True))) if works else PromptWork()
