"""The engines of a scenario by name: what they are, whether they are there, and what their load events say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.gateway.cluster.devices import ServedPrompts
from shared.bus.events import LoadEvent
from shared.ids import Epoch, WorkerId
from shared.step_profile import StepProfile
from simulator.engines.decode import DecodeLimits, SimulatedDecode
from simulator.engines.prefill import SimulatedPrefill
from simulator.engines.work import PromptJob
from simulator.events import EventLoop
from simulator.scenario import EngineGroup, Scenario

AT_ONCE_BYTES_PER_S = 1e12
"""What an engine reports whose hand-over takes no time."""


DEVICE_PROMPTS = 256
"""Prompts whose pages a decode worker still has when they have ended; the latest."""


@dataclass(eq=False)
class EngineSeat:
    """One engine of a group. `engine` is new after each loss; whoever uses it is told of one."""

    name: str
    group: EngineGroup
    engine: SimulatedPrefill | SimulatedDecode
    is_present: bool = True
    epoch: int = 1
    device: ServedPrompts = field(default_factory=lambda: ServedPrompts(DEVICE_PROMPTS))  # of a decode worker
    on_lost: dict[Callable[[], None], None] = field(default_factory=dict)

    @property
    def prefill(self) -> SimulatedPrefill:
        assert isinstance(self.engine, SimulatedPrefill), f"{self.name} does not prefill"
        return self.engine

    @property
    def decode(self) -> SimulatedDecode:
        assert isinstance(self.engine, SimulatedDecode), f"{self.name} does not decode"
        return self.engine

    def load(self, now_s: float) -> LoadEvent:
        """Return what it reports of itself."""
        engine, profile = self.engine, self.group.profile
        decode = engine if isinstance(engine, SimulatedDecode) else None
        step_tokens = self.group.step_tokens if decode is None else decode.prompt_tokens_of_step()
        queued_tokens, queued_s = _queued(_prompts(engine), profile, step_tokens)
        busy, arrivals_per_s = engine.meter.read()
        return LoadEvent(
            worker=WorkerId(self.name),
            epoch=Epoch(self.epoch),
            running=engine.num_running,
            waiting=engine.num_waiting,
            kv_usage=0.0 if decode is None else decode.kv_usage,
            speed_tokens_per_s=0.0,
            at_ms=round(now_s * 1000),
            step_profile=profile,
            queued_s=queued_s * engine.slowdown,
            queued_tokens=queued_tokens,
            context_tokens=0 if decode is None else decode.context_tokens,
            step_tokens=step_tokens,
            busy=busy,
            arrivals_per_s=arrivals_per_s,
            hand_over_bytes_per_s=min(self.group.hand_over_bytes_per_s, AT_ONCE_BYTES_PER_S),
            max_batch=0 if decode is None else decode.limits.max_batch,
            answer_tokens=0.0 if decode is None else decode.answer_tokens.value,
        )


class Engines:
    """All engines. A name says where one is and what it does."""

    def __init__(self, scenario: Scenario, loop: EventLoop) -> None:
        self._loop = loop
        self._block_tokens = scenario.kv.block_tokens
        self.seats: dict[str, EngineSeat] = {}
        counts: dict[tuple[str, str], int] = {}
        for group in scenario.engines:
            for _ in range(group.num):
                number = counts.get((group.dc, group.role), 0)
                counts[group.dc, group.role] = number + 1
                name = f"{group.dc}-{group.role}-{number}"
                is_present = name not in scenario.absent
                self.seats[name] = EngineSeat(name, group, self._engine(group), is_present)

    def lose(self, name: str) -> None:
        """Take an engine away with all it has, and tell those who wait for it."""
        seat = self.seats[name]
        if not seat.is_present:
            return
        seat.is_present = False
        seat.engine.stop()
        seat.engine, seat.device = self._engine(seat.group), ServedPrompts(DEVICE_PROMPTS)
        waiting, seat.on_lost = list(seat.on_lost), {}
        for tell in waiting:
            tell()

    def bring(self, name: str, slowdown: float) -> bool:
        """Have an engine there, that slow; True when it was not."""
        seat = self.seats[name]
        seat.engine.slowdown = slowdown
        if seat.is_present:
            return False
        seat.is_present = True
        seat.epoch += 1
        return True

    def _engine(self, group: EngineGroup) -> SimulatedPrefill | SimulatedDecode:
        if group.role == "prefill":
            return SimulatedPrefill(self._loop, group.cost, group.step_tokens, group.prompts_per_step)
        limits = DecodeLimits(
            group.step_tokens, group.max_batch, group.kv_tokens, group.inter_token_s, self._block_tokens
        )
        return SimulatedDecode(self._loop, group.cost, limits)


def _prompts(engine: SimulatedPrefill | SimulatedDecode) -> Iterable[PromptJob]:
    yield from engine.works
    if isinstance(engine, SimulatedDecode):
        yield from engine.waiting


def _queued(works: Iterable[PromptJob], profile: StepProfile | None, step_tokens: int) -> tuple[int, float]:
    """Return the prompt tokens that are still to be computed, and what they take as the profile has it."""
    tokens, seconds = 0, 0.0
    for work in works:
        first = work.first_left
        tokens += work.end - first
        if profile is not None:
            seconds += profile.prompt_s(first, work.end, step_tokens)
    return tokens, seconds
