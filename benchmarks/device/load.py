"""Many requests at once against the whole suite on one device: how far the decode worker is from what its kernels bear.

*decode alone*: no prefill worker, so the decode worker computes whole prompts beside its batch. *handed over*: a
prefill worker computes them on the same device, and their KV passes two pools. Beside what clients see stands what the
decode worker says of its steps meanwhile: how long, how much of it outside the model, how many tokens of prompts.
"""

import asyncio
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.client import RequestOutcome
from benchmarks.device.serving import DeviceModel, running_suite
from benchmarks.device.shapes import Burst, DevicePlan
from benchmarks.harness import Check, Report, Row, at_least, at_most
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import Load, new_session, percentile, run_load
from shared.metrics import PREFIX
from shared.model.attention.select import AttentionName

WAYS = {"decode alone": ("prefill-east", "cachepool-east"), "handed over": ()}
"""What each way does without."""
MOST_TOGETHER = 2.0
"""Times the TTFT of one cached prompt that several at once may take."""
MOST_REPEATED = 1.3
"""Times the TTFT of a repeated prompt that prefill computed, for one that decode computed."""
SETTLE_S = 2.0
"""Until blocks of the prompts before are published."""
STEP_METRICS = {
    "steps": "decode_step_seconds_count",
    "steps_s": "decode_step_seconds_sum",
    "outside_s": "decode_step_outside_model_seconds_total",
    "tail_tokens": "decode_step_tail_tokens_total",
}


def measure(
    plan: DevicePlan, device: torch.device, attention: AttentionName, ways: Sequence[str] = tuple(WAYS)
) -> Report:
    report = Report()
    repeated: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = DeviceModel.write(plan.served[0], Path(scratch), device, attention)
        for way in ways:
            with running_suite(model, WAYS[way]) as ports:
                found = asyncio.run(_LoadedSuite(model, ports, plan, way).run())
            report.rows += found.rows
            repeated[way] = found.repeated_ms
            if way == "decode alone" and device.type == "cuda":
                report.checks += found.checks
    if device.type == "cuda" and len(repeated) == len(WAYS):
        ratio = repeated["decode alone"] / repeated["handed over"]
        report.checks.append(
            at_most("a repeated prompt: decode's own, in times of one of prefill", ratio, MOST_REPEATED)
        )
    return report


@dataclass
class _Found:
    rows: list[Row]
    checks: list[Check]
    repeated_ms: float


class _LoadedSuite:
    """Asks one running suite; no prompt twice unless that is the point."""

    def __init__(self, model: DeviceModel, ports: dict[str, int], plan: DevicePlan, way: str) -> None:
        self._model = model
        self._url = f"http://127.0.0.1:{ports['gateway']}"
        self._metrics_url = f"http://127.0.0.1:{ports['status3']}/metrics"
        self._plan = plan
        self._way = way
        self._rng = random.Random(way)
        self._vocab_size = model.files.config().vocab_size

    async def run(self) -> _Found:
        async with new_session() as self._session:
            rows, checks = [], []
            for burst in self._plan.bursts:
                await self._ask(self._prompts(burst.concurrency, burst.prompt_tokens), burst)  # warms up
                row = await self._burst(burst)
                rows.append(row)
                if burst.least_per_s is not None:
                    name = f"{self._way}, {burst.prompt_tokens} in, {burst.concurrency} at once"
                    checks.append(at_least(name, float(str(row["requests_per_s"])), burst.least_per_s, "requests/s"))
            one = Burst(self._plan.served[0].lengths[0], self._plan.bursts[0].output_tokens, 1, 1)
            several = Burst(one.prompt_tokens, one.output_tokens, self._plan.served[0].batch, 1)
            cached = await self._cached(one)
            together = await self._cached(several)
            repeated = await self._repeated(one)
        rows += [cached, together, repeated]
        ratio = float(str(together["ttft_p50_ms"])) / float(str(cached["ttft_p50_ms"]))
        name = f"{self._way}, {one.prompt_tokens} cached: TTFT of {several.concurrency} at once in times of one"
        checks.append(at_most(name, ratio, MOST_TOGETHER))
        return _Found(rows, checks, float(str(repeated["ttft_p50_ms"])))

    async def _burst(self, burst: Burst) -> Row:
        prompts = self._prompts(burst.num_requests, burst.prompt_tokens)
        async with self._observed() as seen:
            outcomes, duration_s = await self._ask(prompts, burst)
        return self._row("new", burst, outcomes, duration_s, seen)

    async def _cached(self, burst: Burst) -> Row:
        """Several at once, each asked before, when nothing else goes on."""
        outcomes, duration_s = [], 0.0
        seen: dict[str, float] = {}
        for _ in range(self._plan.repetitions):
            prompts = self._prompts(burst.concurrency, burst.prompt_tokens)
            await self._ask(prompts, burst)
            await asyncio.sleep(SETTLE_S)
            async with self._observed() as now:
                again, took_s = await self._ask(prompts, burst)
            outcomes += again
            duration_s += took_s
            seen = {name: seen.get(name, 0.0) + value for name, value in now.items()}
        return self._row("cached", burst, outcomes, duration_s, seen)

    async def _repeated(self, burst: Burst) -> Row:
        """A prompt again as soon as it was answered: while its blocks are on their way to the pool."""
        outcomes, duration_s = [], 0.0
        async with self._observed() as seen:
            for _ in range(2 * self._plan.repetitions):
                prompts = self._prompts(1, burst.prompt_tokens)
                await self._ask(prompts, burst)
                again, took_s = await self._ask(prompts, burst)
                outcomes += again
                duration_s += took_s
        return self._row("repeated at once", burst, outcomes, duration_s, seen)

    async def _ask(self, prompts: Sequence[BenchPrompt], burst: Burst) -> tuple[list[RequestOutcome], float]:
        load = Load(self._url, output_len=burst.output_tokens, max_concurrency=burst.concurrency)
        outcomes, duration_s = await run_load(self._session, load, prompts, self._model.files.name)
        for outcome in outcomes:
            if outcome.error is not None:
                raise RuntimeError(f"the suite did not answer: {outcome.error}")
        return outcomes, duration_s

    def _prompts(self, count: int, num_tokens: int) -> list[BenchPrompt]:
        drawn = self._rng.choices(range(self._vocab_size), k=count * num_tokens)
        return [BenchPrompt(drawn[i : i + num_tokens], num_tokens) for i in range(0, len(drawn), num_tokens)]

    @asynccontextmanager
    async def _observed(self) -> AsyncIterator[dict[str, float]]:
        """Yield a dict that holds, at the end, by how much the decode worker's counters have grown."""
        seen: dict[str, float] = {}
        before = await self._counters()
        yield seen
        after = await self._counters()
        seen |= {name: after[name] - before[name] for name in STEP_METRICS}

    async def _counters(self) -> dict[str, float]:
        async with self._session.get(self._metrics_url) as response:
            return step_counters(await response.text())

    def _row(
        self, prompts: str, burst: Burst, outcomes: Sequence[RequestOutcome], duration_s: float, seen: dict[str, float]
    ) -> Row:
        ttfts = [outcome.ttft_s * 1000 for outcome in outcomes]
        itls = [itl * 1000 for outcome in outcomes for itl in outcome.itls_s] or [0.0]
        steps = max(1.0, seen["steps"])
        return {
            "model": self._model.shape.name,
            "way": self._way,
            "prompts": prompts,
            "prompt_tokens": burst.prompt_tokens,
            "output_tokens": burst.output_tokens,
            "at_once": burst.concurrency,
            "requests": len(outcomes),
            "requests_per_s": round(len(outcomes) / duration_s, 2),
            "output_tokens_per_s": round(sum(outcome.output_tokens for outcome in outcomes) / duration_s, 1),
            "ttft_p50_ms": round(statistics.median(ttfts), 1),
            "ttft_p99_ms": round(percentile(ttfts, 99), 1),
            "itl_p50_ms": round(statistics.median(itls), 2),
            "itl_p99_ms": round(percentile(itls, 99), 2),
            "cached_tokens": min(outcome.cached_tokens for outcome in outcomes),
            "decode_steps": seen["steps"],
            "step_ms": round(1000 * seen["steps_s"] / steps, 2),
            "outside_model_ms": round(1000 * seen["outside_s"] / steps, 2),
            "tail_tokens_per_step": round(seen["tail_tokens"] / steps, 1),
        }


def step_counters(exposition: str) -> dict[str, float]:
    """Return what a decode worker's metrics say of its steps."""
    samples: dict[str, Any] = {
        sample.name: sample.value for family in text_string_to_metric_families(exposition) for sample in family.samples
    }
    return {name: float(samples[PREFIX + metric]) for name, metric in STEP_METRICS.items()}
