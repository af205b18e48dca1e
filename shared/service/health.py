"""What a process says about itself: named conditions, some of which decide whether it is ready."""

import asyncio
from dataclasses import dataclass

from shared.log import get_logger

log = get_logger()


@dataclass(frozen=True)
class Condition:
    ok: bool
    detail: str
    required: bool


class Health:
    """Ready while every required condition is true and the process is not draining. Belongs to one event loop."""

    def __init__(self, *required: str) -> None:
        self.version = 0  # grows with each change
        self._conditions = {name: Condition(ok=False, detail="starting", required=True) for name in required}
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        return not self._draining and all(c.ok for c in self._conditions.values() if c.required)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def conditions(self) -> dict[str, Condition]:
        return dict(self._conditions)

    def set(self, name: str, ok: bool, detail: str = "") -> None:
        """Record a condition; one that the constructor did not name is shown but does not decide readiness."""
        old = self._conditions.get(name)
        new = Condition(ok, detail, required=old.required if old else False)
        if new == old:
            return
        self._conditions[name] = new
        if old is None or old.ok != ok:
            log.info("health_changed", condition=name, ok=ok, detail=detail, ready=self.ready)
        self._bump()

    def drain(self) -> None:
        """Be unready from now on: the process is about to leave."""
        if not self._draining:
            self._draining = True
            self._bump()

    async def changed(self, version: int) -> int:
        """Wait until there is something newer than `version`; return what is current then."""
        while self.version == version:
            await self._changed.wait()
        return self.version

    def _bump(self) -> None:
        self.version += 1
        # A fresh event for the next waiters: whoever waited on this one is woken exactly once.
        self._changed.set()
        self._changed = asyncio.Event()
