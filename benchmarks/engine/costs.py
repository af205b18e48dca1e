"""How well the engines predict their own steps, from the prior on: each step is predicted, measured, then learnt.

`spread` is how far steps with the same tokens and rows are from their median: no prediction is better than that.
"""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.engine.node import TIMEOUT_S, NoPool, host, open_decode
from benchmarks.harness import Check, Report, Row, at_most
from benchmarks.peers.protocol import Prompts
from services.prefill.engine import ComputeJob, PrefillEngine
from services.prefill.settings import PrefillSettings
from shared.config import load
from shared.engine.costs.steps import StepCosts, StepWork
from shared.engine.loaded import LoadedModel
from shared.engine.urgency import Urgency
from shared.fitting import OnlineFit
from shared.step_profile import StepProfile

NUM_LEARNT_STEPS = 30
LEARNT_LENGTHS = range(64, 2049, 64)
LENGTHS = (256, 1024, 4000)
BATCHES = (1, 4, 8)
CONTEXT, NUM_TOKENS = 512, 64
LEARNING_LIMIT_US = 50
STEP_ERROR_LIMIT, PROMPT_ERROR_LIMIT = 0.15, 0.15


@dataclass(frozen=True)
class PredictedStep:
    """One step: what was in it, what it was held to take, what it took, and what learning from it took."""

    work: StepWork
    expected_s: float
    seconds: float
    learning_s: float

    @property
    def error(self) -> float:
        return abs(self.expected_s / self.seconds - 1)


@dataclass
class StepRecorder:
    """Keeps what the costs that it makes are told."""

    steps: list[PredictedStep] = field(default_factory=list)

    def costs(self, fit: OnlineFit) -> StepCosts:
        return _RecordedCosts(fit, self.steps)

    def since(self, num_steps: int) -> list[PredictedStep]:
        return self.steps[num_steps:]


class _RecordedCosts(StepCosts):
    def __init__(self, fit: OnlineFit, steps: list[PredictedStep]) -> None:
        super().__init__(fit)
        self._steps = steps

    def stepped(self, seconds: float, work: StepWork | None) -> None:
        expected_s, started = self.profile.step_s(*(work or ())), time.perf_counter()
        super().stepped(seconds, work)
        if work is not None:
            self._steps.append(PredictedStep(work, expected_s, seconds, time.perf_counter() - started))


async def measure(quick: bool) -> Report:
    rounds = 2 if quick else 7
    prefill, decode = await _prefill(rounds), await _decode(rounds)
    return Report(prefill.rows + decode.rows, prefill.checks + decode.checks)


async def _prefill(rounds: int) -> Report:
    recorder, report, rng = StepRecorder(), Report(), random.Random(1)
    settings = load(PrefillSettings)
    async with host(settings, NoPool(), recorder.costs) as parts:
        model, costs = parts.model, parts.costs
        engine = PrefillEngine(
            model.transformer, parts.torch_thread, parts.transfer, settings.chunk_tokens, parts.metrics, costs
        )
        parts.jobs.start(engine.run(), name="prefill engine")
        while len(recorder.steps) < NUM_LEARNT_STEPS:
            await _compute(engine, model, rng.choice(LEARNT_LENGTHS))
        for length in LENGTHS:
            first, errors, seconds = len(recorder.steps), [], []
            for _ in range(rounds):
                expected_s = costs.profile.prompt_s(0, length, settings.chunk_tokens)
                seconds.append(await _compute(engine, model, length))
                errors.append(abs(expected_s / seconds[-1] - 1))
            report.rows.append(
                _row("prefill", f"{length} tokens", recorder.since(first))
                | {"prompt_ms": _ms(statistics.median(seconds)), "prompt_error": _share(errors)}
            )
            report.checks.append(_check(f"prefill of {length} tokens, all steps together", errors, PROMPT_ERROR_LIMIT))
        _tell("prefill", costs.profile)
    report.checks.append(_learning(recorder))
    return report


async def _compute(engine: PrefillEngine, model: LoadedModel, num_tokens: int) -> float:
    """Compute a prompt of random tokens, in whole blocks or not; return the seconds that it took."""
    reservation = model.kv.reserve([], num_tokens)
    assert reservation is not None, "pages for one prompt"
    started = time.perf_counter()
    try:
        await engine.compute(
            ComputeJob(
                next_token=0,
                end=num_tokens,
                urgency=Urgency(started, started + TIMEOUT_S),
                token_ids=[random.randrange(1, 1000) for _ in range(num_tokens)],
                reservation=reservation,
                on_layer=lambda _ready: None,
                on_chunk=lambda _num_blocks: None,
            )
        )
    finally:
        model.kv.release(reservation)
    return time.perf_counter() - started


async def _decode(rounds: int) -> Report:
    recorder, report, prompts = StepRecorder(), Report(), Prompts(3)
    async with open_decode(costs_of=recorder.costs) as node:
        for batch in BATCHES:
            await asyncio.gather(*(node.generate(p, 12) for p in prompts.several(batch, CONTEXT)))
        for batch in BATCHES:
            first = len(recorder.steps)
            for _ in range(rounds):
                await asyncio.gather(*(node.generate(p, NUM_TOKENS) for p in prompts.several(batch, CONTEXT)))
            for kind, steps in _by_kind(recorder.since(first), batch):
                report.rows.append(_row("decode", kind, steps))
                report.checks.append(_check(f"decode, {kind}", [s.error for s in steps], STEP_ERROR_LIMIT))
        _tell("decode", node.host.costs.profile)
    report.checks.append(_learning(recorder))
    return report


def _by_kind(steps: Sequence[PredictedStep], batch: int) -> Iterator[tuple[str, list[PredictedStep]]]:
    yield f"batch {batch}", [step for step in steps if step.work.num_rows == batch and not step.work.num_tokens]
    yield f"prompts beside up to {batch}", [step for step in steps if step.work.num_tokens]


def _row(role: str, kind: str, steps: Sequence[PredictedStep]) -> Row:
    return {
        "role": role,
        "steps_of": kind,
        "num_steps": len(steps),
        "step_ms": _ms(statistics.median(step.seconds for step in steps)),
        "expected_ms": _ms(statistics.median(step.expected_s for step in steps)),
        "spread": _share(_spread(steps)),
        "step_error": _share([step.error for step in steps]),
    }


def _spread(steps: Sequence[PredictedStep]) -> list[float]:
    alike: dict[tuple[float, ...], list[float]] = {}
    for step in steps:
        alike.setdefault(step.work[:3], []).append(step.seconds)
    return [abs(value / statistics.median(seconds) - 1) for seconds in alike.values() for value in seconds]


def _check(name: str, errors: Sequence[float], limit: float) -> Check:
    return at_most(f"median relative error: {name}", statistics.median(errors), limit)


def _learning(recorder: StepRecorder) -> Check:
    return at_most(
        "median of learning from a step", statistics.median(s.learning_s for s in recorder.steps) * 1e6, 50, "us"
    )


def _tell(role: str, profile: StepProfile) -> None:
    sys.stderr.write(f"{role}: {profile}\n")


def _share(errors: Sequence[float]) -> float:
    return round(statistics.median(errors), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
