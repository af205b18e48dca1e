"""The controller as it runs: looks at the cluster every few seconds, plans twice a minute, off the event loop."""

import asyncio
import time
from collections.abc import Callable

from services.gateway.cluster.registry import Registry
from services.gateway.control.case import PlanningTerms
from services.gateway.control.observed import Observations
from services.gateway.control.state import ControlState, Looking, Snapshot, looked
from services.gateway.routing.calibration import Calibration
from shared.log import get_logger

log = get_logger()

LOOK_EVERY_S = 5.0
"""Thresholds and modes follow routing, which reacts within two seconds; a reader of a gauge needs no more."""


class Controller:
    """Keeps what it believes; decides no request. Its arithmetic runs in a thread, one look at a time."""

    def __init__(
        self,
        registry: Registry,
        observations: Observations,
        calibration: Calibration,
        looking: Looking,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: ControlState | None = None  # None until the first look
        self._registry = registry
        self._observations = observations
        self._calibration = calibration
        self._looking = looking
        self._clock = clock
        self._turn = asyncio.Lock()

    @property
    def terms(self) -> PlanningTerms:
        return self._looking.terms

    def now(self) -> float:
        """Return the time on the clock of the state."""
        return self._clock()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> ControlState:
        """Look at the cluster now, and plan if the last plan is old; return what is believed then."""
        async with self._turn:
            now, view = self._clock(), self._registry.view()
            snapshot = Snapshot.of(now, view, self._observations.seen(), self._calibration.corrections(now))
            self.state = await asyncio.to_thread(self._after, snapshot)
            return self.state

    async def known(self) -> ControlState:
        """Return what is believed, after a first look if there was none."""
        return self.state or await self.look()

    def _after(self, snapshot: Snapshot) -> ControlState:
        before = self.state
        state = looked(before, snapshot, self._looking)
        if before is not None:
            _log_change(before, state)
        return state


def _log_change(before: ControlState, state: ControlState) -> None:
    old, new = before.evaluation, state.evaluation
    if old.desired != new.desired:
        log.info(
            "desired_replicas_changed",
            before=old.desired._asdict(),
            after=new.desired._asdict(),
            requests_per_s=round(new.requests_per_s, 3),
            bound_by=None if new.current is None else new.current.bound_by,
        )
