"""The suite on one device, request by request: time to the first token and between tokens, by where a prompt's KV is.

*streamed*: the prefill worker of the other datacenter computes the prompt, decode runs on what has arrived. *stored*:
decode is asked only when prefill has handed over the last entry, as a suite that stores and forwards would; pulling
from the other pool and landing in pages come after that. *cached*: asked again. *decode alone*: a suite without a
prefill worker and its pool, so decode computes the prompt. *from the own pool*: decode's pool has the blocks, its
device has nothing: prefill made them, and a plain client fetched them at decode's pool, which pulled and kept them; the
time begins when the gateway, which has heard of it by then, is asked. Its prompts were never asked of decode before.

A batch of cached prompts runs undisturbed, while new prompts are *handed over* one after another, and while prompts
*computed before* come from the other pool, so that the prefill worker has nothing to do. Where both engines share a
device, the difference of the last two is the price of that. `hand-over` rows are those of `benchmarks.handover`, with
pages on the device and no model: everything is computed already, and moves from pages to pages through two pools.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path

import torch

from benchmarks.client import RequestOutcome
from benchmarks.device.asking import NEWS_S, BatchRun, SuiteAsker, asking
from benchmarks.device.load import WAYS
from benchmarks.device.serving import DeviceModel, running_suite
from benchmarks.device.shapes import DevicePlan, ServedShape
from benchmarks.handover.__main__ import measure_size
from benchmarks.handover.counting import counting
from benchmarks.harness import Check, Report, Row, Spread, at_most
from benchmarks.serve import percentile
from shared.model.attention.select import AttentionName

STREAMED, OWN_POOL, ALONE = "streamed", "from the own pool", "decode alone"
UNDISTURBED, HANDED_OVER, COMPUTED_BEFORE = "undisturbed", "handed over", "computed before"
MOST_DISTURBED = 1.2
"""Times the p99 between tokens of an undisturbed batch that it may take while prompts are handed over."""
NUM_COMPUTED_BEFORE = 6
"""Prompts for one round: they arrive for about as long as the batch runs."""


@dataclass
class SuiteFigures:
    """What was found of one shape: rows, and the medians that targets speak of, in milliseconds."""

    rows: list[Row] = field(default_factory=list)
    ttft_ms: dict[tuple[str, int], float] = field(default_factory=dict)
    itl_p99_ms: dict[str, float] = field(default_factory=dict)


def measure(
    plan: DevicePlan, device: torch.device, attention: AttentionName, prefill_device: torch.device | None = None
) -> Report:
    report = Report()
    for shape in plan.served:
        found = SuiteFigures()
        with tempfile.TemporaryDirectory() as scratch:
            model = DeviceModel.write(shape, Path(scratch), device, attention, prefill_device)
            with running_suite(model) as ports:
                asyncio.run(_ask_whole(model, ports, plan.suite_repetitions, found))
            with running_suite(model, WAYS[ALONE]) as ports:
                asyncio.run(_ask_alone(model, ports, plan.suite_repetitions, found))
        report.rows += found.rows
        report.rows += handover_rows(shape, device, plan.suite_repetitions)
        if device.type == "cuda":
            report.checks += checks(shape, found)
    return report


def checks(shape: ServedShape, found: SuiteFigures) -> list[Check]:
    """Compare the figures of a shape with its targets."""
    named: list[Check] = []
    for length, most in shape.most_times_alone.items():
        ratio = found.ttft_ms[STREAMED, length] / found.ttft_ms[ALONE, length]
        named.append(at_most(f"{shape.name}, {length}: streamed / decode alone", ratio, most))
    for length, most in shape.most_from_pool_s.items():
        seconds = found.ttft_ms[OWN_POOL, length] / 1000
        named.append(at_most(f"{shape.name}, {length}: TTFT {OWN_POOL}", seconds, most, "s"))
    if found.itl_p99_ms:
        ratio = found.itl_p99_ms[HANDED_OVER] / found.itl_p99_ms[UNDISTURBED]
        name = f"{shape.name}, batch of {shape.batch}: ITL p99 while prompts are handed over / undisturbed"
        named.append(at_most(name, ratio, MOST_DISTURBED))
    return named


def handover_rows(shape: ServedShape, device: torch.device, passes: int) -> list[Row]:
    """Return how fast entries of the shape's size move from pages to pages, hop by hop and over all of them at once."""
    with counting(copies=False) as counted:
        rows = asyncio.run(measure_size(counted, ("auto",), str(device), shape.entry_bytes, passes))
    return [
        {"model": shape.name, "way": "hand-over", **{name: row[name] for name in ("entry_kib", "hop")}}
        | {name: cell for name, cell in row.items() if name.startswith("gb_per_s") or name == "first_ms"}
        for row in rows
        if row.get("memory") == "used" and "gb_per_s" in row
    ]


async def _ask_whole(model: DeviceModel, ports: dict[str, int], repetitions: int, found: SuiteFigures) -> None:
    async with asking(model, ports) as asker:
        for length in asker.shape.lengths:
            await asker.complete(asker.prompt(length))  # warms up
        for length in asker.shape.lengths:
            await _ask_length(asker, length, repetitions, found)
        prompts = [asker.prompt(asker.shape.lengths[0]) for _ in range(asker.shape.batch)]
        await _ask_together(asker, prompts, found)
        if asker.shape.arriving_tokens is not None:
            await _ask_beside(asker, prompts, asker.shape.arriving_tokens, repetitions, found)


async def _ask_length(asker: SuiteAsker, length: int, repetitions: int, found: SuiteFigures) -> None:
    streamed, again = [], []
    for _ in range(repetitions):
        prompt = asker.prompt(length)
        streamed.append(await asker.complete(prompt))
        again.append(await asker.complete(prompt))
    _note(asker, STREAMED, length, streamed, found)
    _note(asker, "stored", length, await _repeated(repetitions, partial(_stored, asker, length)), found)
    _note(asker, "cached", length, again, found)
    _note(asker, OWN_POOL, length, await _repeated(repetitions, partial(_from_own_pool, asker, length)), found)


async def _ask_alone(model: DeviceModel, ports: dict[str, int], repetitions: int, found: SuiteFigures) -> None:
    async with asking(model, ports) as asker:
        for length in asker.shape.lengths:
            await asker.complete(asker.prompt(length))  # warms up
        for length in asker.shape.lengths:
            outcomes = await _repeated(repetitions, partial(_new, asker, length))
            _note(asker, ALONE, length, outcomes, found)


async def _repeated(repetitions: int, ask: Callable[[], Awaitable[RequestOutcome]]) -> list[RequestOutcome]:
    return [await ask() for _ in range(repetitions)]


async def _new(asker: SuiteAsker, length: int) -> RequestOutcome:
    return await asker.complete(asker.prompt(length))


async def _stored(asker: SuiteAsker, length: int) -> RequestOutcome:
    prompt = asker.prompt(length)
    started = time.perf_counter()
    await asker.prefill(prompt)
    prefilled_s = time.perf_counter() - started
    await asyncio.sleep(NEWS_S)  # not counted
    outcome = await asker.complete(prompt)
    outcome.token_times_s = [at_s + prefilled_s for at_s in outcome.token_times_s]
    return outcome


async def _from_own_pool(asker: SuiteAsker, length: int) -> RequestOutcome:
    prompt = asker.prompt(length)
    await asker.prefill(prompt)
    await asker.pull(prompt)
    await asyncio.sleep(NEWS_S)
    return await asker.complete(prompt)


async def _ask_together(asker: SuiteAsker, prompts: Sequence[list[int]], found: SuiteFigures) -> None:
    """Several at once, all cached: what a running batch gives."""
    for prompt in prompts:
        await asker.complete(prompt)
    outcomes = await asyncio.gather(*(asker.complete(prompt) for prompt in prompts))
    _note(asker, f"cached, {len(prompts)} at once", asker.shape.lengths[0], outcomes, found)


async def _ask_beside(
    asker: SuiteAsker, batch: Sequence[list[int]], arriving_tokens: int, repetitions: int, found: SuiteFigures
) -> None:
    """Run the batch, which is cached, with and without arriving prompts, in turns."""
    runs: dict[str, list[BatchRun]] = {UNDISTURBED: [], HANDED_OVER: [], COMPUTED_BEFORE: []}
    for _ in range(repetitions):
        new: Iterable[list[int]] = (asker.prompt(length) for length in repeat(arriving_tokens))
        runs[UNDISTURBED].append(await asker.run_batch(batch, ()))
        runs[HANDED_OVER].append(await asker.run_batch(batch, new))
        computed = [asker.prompt(arriving_tokens) for _ in range(NUM_COMPUTED_BEFORE)]
        for prompt in computed:
            await asker.prefill(prompt)
        await asyncio.sleep(NEWS_S)
        runs[COMPUTED_BEFORE].append(await asker.run_batch(batch, computed))
    for arrivals, of_one in runs.items():
        p99 = Spread.of([1000 * percentile(run.itls_s, 99) for run in of_one])
        found.itl_p99_ms[arrivals] = p99.median
        row: Row = {
            "model": asker.shape.name,
            "way": f"batch of {len(batch)}",
            "prompt_tokens": asker.shape.lengths[0],
            "arrivals": arrivals,
            "arriving_tokens": 0 if arrivals == UNDISTURBED else arriving_tokens,
            "num_arrived": sum(run.num_arrived for run in of_one),
            "itl_p50_ms": round(1000 * statistics.median(percentile(run.itls_s, 50) for run in of_one), 2),
            **p99.cells("itl_p99_ms"),
        }
        found.rows.append(row)


def _note(asker: SuiteAsker, way: str, length: int, outcomes: Sequence[RequestOutcome], found: SuiteFigures) -> None:
    ttft = Spread.of([outcome.ttft_s * 1000 for outcome in outcomes])
    itls = [itl * 1000 for outcome in outcomes for itl in outcome.itls_s]
    found.ttft_ms[way, length] = ttft.median
    row: Row = {
        "model": asker.shape.name,
        "way": way,
        "prompt_tokens": length,
        "cached_tokens": min(outcome.cached_tokens for outcome in outcomes),
        **ttft.cells("ttft_ms", 1),
        "itl_p50_ms": round(percentile(itls, 50), 2),
        "itl_p99_ms": round(percentile(itls, 99), 2),
    }
    found.rows.append(row)
