"""What is seen of the engines that compute prompts: CPU time, steps, and which of them computed whose prompt."""

from dataclasses import dataclass
from typing import Protocol

from benchmarks.fairness.layout import GATEWAY, computing_engines
from benchmarks.wan.suite import WanSuite


@dataclass(frozen=True)
class StepsRun:
    """How many steps engines ran, and how long these took together."""

    number: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "StepsRun") -> "StepsRun":
        return StepsRun(self.number + other.number, self.seconds + other.seconds)

    def __sub__(self, other: "StepsRun") -> "StepsRun":
        return StepsRun(self.number - other.number, self.seconds - other.seconds)


class WatchedEngines(Protocol):
    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each engine has used."""

    async def steps(self) -> StepsRun:
        """Return what all of them have run until now."""

    def by_request(self) -> dict[str, str]:
        """Return which engine was to compute the prompt of each request, by the gateway's last plan."""


class SuiteEngines:
    """The engines of a running suite that compute prompts."""

    def __init__(self, suite: WanSuite, name: str) -> None:
        self._suite = suite
        self._engines = computing_engines(name)

    def cpu_s(self) -> dict[str, float]:
        return {engine: self._suite.cpu_s(engine) for engine in self._engines}

    async def steps(self) -> StepsRun:
        run = StepsRun()
        for engine in self._engines:
            names = ("prefill_steps_total", "prefill_step_seconds_total")
            if engine.startswith("decode"):
                names = ("decode_step_seconds_count", "decode_step_seconds_sum")
            number, seconds = [await self._suite.metric(engine, name) for name in names]
            run += StepsRun(number, seconds)
        return run

    def by_request(self) -> dict[str, str]:
        plans = [entry for entry in self._suite.events(GATEWAY) if entry["event"] == "request_planned"]
        return {plan["request_id"]: plan["prefill"] or plan["decode"] for plan in plans}
