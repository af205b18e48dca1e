"""What the router chooses beside what could be chosen: time to the first token of prompts that nobody has seen.

One suite has three gateways. One routes by cost, one leaves every prompt to decode, one hands every prompt over to the
other datacenter. They are asked in turn, each with a prompt of its own, when the last one's answer
is over and the workers have said so.
"""

import asyncio
import tempfile
from pathlib import Path

import torch

from benchmarks.device.asking import SuiteAsker, asking
from benchmarks.device.serving import DeviceModel, gateway_port, running_suite
from benchmarks.device.shapes import DevicePlan
from benchmarks.harness import Report, Row, Spread, at_most
from shared.model.attention.select import AttentionName

CHOSEN, ALONE, REMOTE = "chosen", "alone", "remote"
GATEWAYS = {
    CHOSEN: "PRFAAS_ROUTING_POLICY=cost",
    ALONE: f"PRFAAS_ROUTING_POLICY=threshold PRFAAS_DECODE_THRESHOLD_TOKENS={1 << 30}",
    REMOTE: "PRFAAS_ROUTING_POLICY=threshold PRFAAS_DECODE_THRESHOLD_TOKENS=0 PRFAAS_OFFLOAD_THRESHOLD_TOKENS=0",
}
MOST_TIMES_BEST = 1.1
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
OUTPUT_TOKENS = 2
NUM_WARM_UP = 2
SETTLED_S = 0.6
"""Until every gateway has a report of the workers at rest."""


def measure(
    plan: DevicePlan, device: torch.device, attention: AttentionName, prefill_device: torch.device | None = None
) -> Report:
    report = Report()
    for shape in plan.served:
        with tempfile.TemporaryDirectory() as scratch:
            model = DeviceModel.write(shape, Path(scratch), device, attention, prefill_device)
            with running_suite(model, gateways=GATEWAYS) as ports:
                asyncio.run(_compare(model, ports, plan.suite_repetitions, report))
    return report


async def _compare(model: DeviceModel, ports: dict[str, int], repetitions: int, report: Report) -> None:
    name, most = model.shape.name, model.shape.max_tokens - OUTPUT_TOKENS
    lengths = sorted({min(length, most) for length in LENGTHS})
    async with asking(model, ports) as asker:
        for _ in range(NUM_WARM_UP):  # profiles are measured then, and compiled what is compiled
            for length in lengths:
                for way in (ALONE, REMOTE, CHOSEN):
                    await _ttft_ms(asker, way, length)
        for length in lengths:
            times: dict[str, list[float]] = {way: [] for way in GATEWAYS}
            for number in range(repetitions):
                for way in list(GATEWAYS) if number % 2 else list(reversed(GATEWAYS)):
                    times[way].append(await _ttft_ms(asker, way, length))
            spreads = {way: Spread.of(of_way) for way, of_way in times.items()}
            row: Row = {"model": name, "prompt_tokens": length}
            for way, spread in spreads.items():
                row |= spread.cells(f"{way}_ttft_ms", 1)
            best = min(spreads[ALONE].median, spreads[REMOTE].median)
            row["times_best"] = round(spreads[CHOSEN].median / best, 3)
            report.rows.append(row)
            report.checks.append(
                at_most(f"{name}, {length}: chosen / best", spreads[CHOSEN].median / best, MOST_TIMES_BEST)
            )


async def _ttft_ms(asker: SuiteAsker, way: str, length: int) -> float:
    outcome = await asker.complete(asker.prompt(length), OUTPUT_TOKENS, gateway_port(way))
    await asyncio.sleep(SETTLED_S)
    return 1000 * outcome.ttft_s
