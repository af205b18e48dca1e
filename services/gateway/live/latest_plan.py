"""The controller's view, worked out anew only when the controller has looked again."""

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

S = TypeVar("S")

Json = dict[str, Any]


class LatestPlan(Generic[S]):
    """Keeps the answer to the state that it was made of."""

    def __init__(
        self,
        state: Callable[[], S | None],
        answer: Callable[[S], Json],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state` returns what is believed now, another object after each look; `answer` makes JSON of it, in which
        `age_s` says how old it is.
        """
        self._current_state = state
        self._make = answer
        self._clock = clock
        self._state: S | None = None
        self._answer: Json = {}
        self._made_at = 0.0

    def current(self) -> Json | None:
        """Return what `GET /v1/plan` would; None before the first look."""
        state = self._current_state()
        if state is None:
            return None
        now = self._clock()
        if state is not self._state:
            self._state, self._answer, self._made_at = state, self._make(state), now
        return {**self._answer, "age_s": round(self._answer["age_s"] + now - self._made_at, 3)}
