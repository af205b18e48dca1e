"""Steps from their plan to their outcome: alone, or launched behind the step under way, whose tokens come first."""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from services.decode.holding import Holding
from services.decode.steps.ahead import AheadRunner, StepInHand
from services.decode.steps.runner import DecodeStep, Runner, StepOutcome
from shared.engine.thread import WorkThread
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer

LAUNCH_LEAD_S = 0.003
"""How long before the step under way may end, at least, the next one is planned."""


class PagesInHand(Protocol):
    """Who keeps pages while the torch thread works on them."""

    def take_in_hand(self, holdings: Iterable[Holding], /) -> None: ...

    def put_down(self, holdings: Iterable[Holding], /) -> None: ...


class StepDriver:
    """Has the torch thread run steps and hands each outcome out, in the order of the steps. Belongs to the loop."""

    def __init__(
        self,
        transformer: Transformer,
        kv: PagedKv,
        thread: WorkThread,
        pages: PagesInHand,
        hand_out: Callable[[StepInHand, StepOutcome, float], None],
    ) -> None:
        """`hand_out` is told the seconds that a step took its requests, too."""
        self._transformer = transformer
        self._thread = thread
        self._pages = pages
        self._hand_out = hand_out
        self._runner = Runner(transformer, kv)
        self._ahead = AheadRunner(transformer, kv)
        self._handed_out_s = 0.0
        self.under_way: StepInHand | None = None
        """What is launched and not handed out: its pages may not be taken, nor slid past."""

    async def until_nearly_read(self) -> None:
        """Wait, if a step is under way, for half of it at most: prompts that arrive until then are in the next one."""
        if self.under_way is not None:
            shortest_s = self._ahead.shortest_s
            left_s = self._handed_out_s + min(shortest_s / 2, shortest_s - LAUNCH_LEAD_S) - time.perf_counter()
            if left_s > 0:
                await asyncio.sleep(left_s)

    async def take(self, step: DecodeStep, started_s: float, *, may_launch: bool) -> None:
        """Launch a step behind the one under way and hand that one out; or run it alone.

        A step that cannot be launched, or is empty, is not begun while one is under way: that one is handed out first.
        """
        if step and may_launch and self._ahead.can_launch(step):
            await self._launch(StepInHand.of(step, started_s, self._transformer.num_layers))
        elif self.under_way is not None:
            await self._launch(None)
        else:
            await self._run_alone(StepInHand.of(step, started_s, self._transformer.num_layers))

    async def clean_up(self) -> None:
        """Wait for what nobody will hand out, and let go of its pages."""
        before, self.under_way = self.under_way, None
        if before is not None:
            await self._thread.run(self._transformer.wait)
            self._pages.put_down(before.holdings)

    async def _run_alone(self, hand: StepInHand) -> None:
        self._pages.take_in_hand(hand.holdings)
        try:
            self._finish(hand, await self._thread.run(partial(self._runner.run, hand.step)))
        finally:
            self._pages.put_down(hand.holdings)

    async def _launch(self, hand: StepInHand | None) -> None:
        """Launch a step, if there is one, then hand out the one before, if there is one."""
        before = self.under_way
        holdings = [] if hand is None else hand.holdings
        self._pages.take_in_hand(holdings)
        try:
            outcome = await self._thread.run(partial(self._ahead.launch_and_read, hand, before))
        except BaseException:
            await self.clean_up()  # waits for what was launched, too
            self._pages.put_down(holdings)
            raise
        launched = hand is not None and hand.flight is not None
        self.under_way = hand if launched else None
        if hand is not None:
            hand.count_coming(1)
        if before is not None and outcome is not None:
            before.count_coming(-1)
            try:
                self._finish(before, outcome)
            finally:
                self._pages.put_down(before.holdings)
        if hand is not None and not launched:
            try:
                await self._run_alone(hand)
            finally:
                self._pages.put_down(holdings)

    def _finish(self, hand: StepInHand, outcome: StepOutcome) -> None:
        seconds = time.perf_counter() - max(hand.started_s, self._handed_out_s)
        self._hand_out(hand, outcome, seconds)
        self._handed_out_s = time.perf_counter()
