"""How well the engines predict their own steps, from the prior on: each step is predicted, measured, then learnt.

`spread` is how far steps with the same tokens and rows are from their median, `hindsight_error` what the best profile
for all of these steps leaves: no prediction is much better than that.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.engine.node import TIMEOUT_S, NoPool, host, open_decode
from benchmarks.harness import Check, Report, Row, at_most
from benchmarks.peers.protocol import Prompts
from services.prefill.engine import ComputeJob, PrefillEngine
from services.prefill.settings import PrefillSettings
from shared.config import load
from shared.engine.costs.steps import StepCosts, StepWork
from shared.engine.loaded import LoadedModel
from shared.engine.urgency import Urgency
from shared.measuring.fitting import OnlineFit
from shared.step_profile import StepProfile

NUM_LEARNT_STEPS = 30
LEARNT_LENGTHS = range(64, 2049, 64)
LENGTHS = (256, 1024, 4000)
BATCHES = (1, 4, 8)
CONTEXT, NUM_LEARNT_TOKENS, NUM_TOKENS = 512, 12, 64
ERROR_LIMIT, LEARNING_LIMIT_US = 0.15, 50


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
    recorder, rng, settings = StepRecorder(), random.Random(1), load(PrefillSettings)
    errors: dict[int, list[float]] = {length: [] for length in LENGTHS}
    kinds: dict[str, list[PredictedStep]] = {f"{length} tokens": [] for length in LENGTHS}
    async with host(settings, NoPool(), recorder.costs) as parts:
        model, costs = parts.model, parts.costs
        engine = PrefillEngine(
            model.transformer, parts.torch_thread, parts.transfer, settings.chunk_tokens, parts.metrics, costs
        )
        parts.jobs.start(engine.run(), name="prefill engine")
        while len(recorder.steps) < NUM_LEARNT_STEPS:
            await _compute(engine, model, rng.choice(LEARNT_LENGTHS))
        for length in [*LENGTHS] * rounds:
            first, expected_s = len(recorder.steps), costs.profile.prompt_s(0, length, settings.chunk_tokens)
            errors[length].append(abs(expected_s / await _compute(engine, model, length) - 1))
            kinds[f"{length} tokens"] += recorder.steps[first:]
    report = _report("prefill", recorder.steps, kinds, costs.profile)
    report.checks += [
        _check(f"prefill of {length} tokens, all its steps", of_length) for length, of_length in errors.items()
    ]
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
    recorder, prompts = StepRecorder(), Prompts(3)
    kinds: dict[str, list[PredictedStep]] = {}
    async with open_decode(costs_of=recorder.costs) as node:
        for batch in BATCHES:
            await asyncio.gather(*(node.generate(p, NUM_LEARNT_TOKENS) for p in prompts.several(batch, CONTEXT)))
        for batch in BATCHES * rounds:
            first = len(recorder.steps)
            await asyncio.gather(*(node.generate(p, NUM_TOKENS) for p in prompts.several(batch, CONTEXT)))
            for step in recorder.steps[first:]:
                if step.work.num_tokens:
                    kinds.setdefault(f"prompts beside up to {batch}", []).append(step)
                elif step.work.num_rows == batch:
                    kinds.setdefault(f"batch {batch}", []).append(step)
        profile = node.host.costs.profile
    return _report("decode", recorder.steps, kinds, profile)


def _report(
    role: str, steps: Sequence[PredictedStep], kinds: Mapping[str, Sequence[PredictedStep]], profile: StepProfile
) -> Report:
    hindsight = _fitted([step for of_kind in kinds.values() for step in of_kind])
    learning_s = statistics.median(step.learning_s for step in steps)
    return Report(
        [
            *(_row(role, kind, of_kind, hindsight) for kind, of_kind in kinds.items()),
            {"role": role, **{f"{name[:-2]}_us": round(value * 1e6, 4) for name, value in _seconds_of(profile)}},
        ],
        [
            *(_check(f"steps of {role}, {kind}", [s.error for s in of_kind]) for kind, of_kind in kinds.items()),
            at_most(f"{role}: median time of learning from a step", learning_s * 1e6, LEARNING_LIMIT_US, "us"),
        ],
    )


def _row(role: str, kind: str, steps: Sequence[PredictedStep], hindsight: StepProfile) -> Row:
    return {
        "role": role,
        "steps_of": kind,
        "num_steps": len(steps),
        "step_ms": _ms(statistics.median(step.seconds for step in steps)),
        "expected_ms": _ms(statistics.median(step.expected_s for step in steps)),
        "spread": _share(_spread(steps)),
        "hindsight_error": _share([abs(hindsight.step_s(*step.work) / step.seconds - 1) for step in steps]),
        "step_error": _share([step.error for step in steps]),
    }


def _spread(steps: Sequence[PredictedStep]) -> list[float]:
    alike: dict[tuple[float, ...], list[float]] = {}
    for step in steps:
        alike.setdefault(step.work[:3], []).append(step.seconds)
    return [abs(value / statistics.median(seconds) - 1) for seconds in alike.values() for value in seconds]


def _fitted(steps: Sequence[PredictedStep]) -> StepProfile:
    """Return the profile with the least relative errors over all steps, which nobody knows beforehand."""
    shares = np.array([[1.0, *step.work] for step in steps]) / np.array([[step.seconds] for step in steps])
    found, *_ = np.linalg.lstsq(shares, np.ones(len(steps)), rcond=None)
    return StepProfile(*map(float, found))


def _seconds_of(profile: StepProfile) -> Iterator[tuple[str, float]]:
    yield from zip(profile._fields[:-1], profile[:-1], strict=True)


def _check(name: str, errors: Sequence[float]) -> Check:
    return at_most(f"median relative error: {name}", statistics.median(errors), ERROR_LIMIT)


def _share(errors: Sequence[float]) -> float:
    return round(statistics.median(errors), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
