"""The whole suite on this machine: seconds to the first answer (cold, warm), memory of each process, and the time to
the first token and between tokens at several prompt lengths, cold and cached.

Starts and stops the suite itself, with a model cache of its own; nothing else may use its ports.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time

import psutil

from benchmarks import harness, serve
from benchmarks.client import RequestOutcome
from benchmarks.harness import Check, Report, Row, Spread, at_most
from benchmarks.suite import URL, process_name, suite

INPUT_LENS = (512, 2048, 8000)
OUTPUT_LEN = 32
WARM_START_LIMIT_S = 20.0
IDLE_LIMIT_MB = 300.0
LIGHT = ("cachepool-east", "cachepool-west", "gateway-west")


def memory(up: psutil.Process) -> list[Row]:
    """RSS counts shared pages in every process, PSS once in all: the converted weights are mapped by several."""
    rows: list[Row] = []
    for process in up.children(recursive=True):
        name = process_name(process)
        info = process.memory_full_info()
        has_torch = any("libtorch" in region.path for region in process.memory_maps())
        rows.append(
            {"process": name, "rss_mb": _mb(info.rss), "pss_mb": _mb(info.pss), "torch": "yes" if has_torch else "no"}
        )
    return sorted(rows, key=lambda row: str(row["process"]))


def _mb(count: int) -> float:
    return round(count / 1e6, 1)


def memory_checks(rows: list[Row]) -> list[Check]:
    checks = []
    for row in rows:
        if row["process"] in LIGHT:
            assert isinstance(row["rss_mb"], float)
            checks.append(at_most(f"{row['process']} idle RSS", row["rss_mb"], IDLE_LIMIT_MB, "MB"))
            checks.append(
                Check(f"{row['process']} loads torch", float(row["torch"] == "yes"), "0", row["torch"] == "no")
            )
    return checks


async def latency(input_len: int, repetitions: int) -> list[Row]:
    """Each repetition asks a prompt nobody has seen, then the same one again."""
    outcomes: dict[str, list[RequestOutcome]] = {"cold": [], "cached": []}
    async with serve.new_session() as session:
        model = await serve.first_model(session, URL)
        for repetition in range(repetitions):
            # The clock in the seed: a prompt of an earlier run must not be in any cache.
            load = serve.Load(
                url=URL, input_len=input_len, output_len=OUTPUT_LEN, num_prompts=1, seed=time.time_ns() + repetition
            )
            prompts = await serve.make_prompts(session, load, model)
            for state in outcomes:
                (outcome,), _ = await serve.run_load(session, load, prompts, model)
                if outcome.error is not None:
                    raise RuntimeError(f"{input_len} tokens, {state}: {outcome.error}")
                outcomes[state].append(outcome)
    return [_latency_row(input_len, state, found) for state, found in outcomes.items()]


def _latency_row(input_len: int, state: str, outcomes: list[RequestOutcome]) -> Row:
    return {
        "input_tokens": input_len,
        "state": state,
        "cached_tokens": outcomes[-1].cached_tokens,
        **Spread.of([outcome.ttft_s * 1000 for outcome in outcomes]).cells("ttft_ms"),
        **Spread.of([itl * 1000 for outcome in outcomes for itl in outcome.itls_s]).cells("itl_ms"),
        "repetitions": len(outcomes),
    }


def measure(options: argparse.Namespace) -> Report:
    repetitions = 1 if options.quick else 3
    idle: list[Row] = []
    latencies: list[Row] = []
    seconds: dict[str, list[float]] = {"warm": []} if options.quick else {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        # Quick takes what is converted and compiled already, and leaves out the cold start.
        environ = {} if options.quick else {"PRFAAS_CACHE_DIR": folder}
        if not options.quick:
            with suite(**environ) as cold:
                seconds["cold"].append(cold.seconds)
        for repetition in range(repetitions):
            with suite(**environ) as warm:
                seconds["warm"].append(warm.seconds)
                if repetition == repetitions - 1:
                    idle = memory(warm.up)
                    for input_len in INPUT_LENS[:1] if options.quick else INPUT_LENS:
                        latencies += asyncio.run(latency(input_len, repetitions))
    starts: list[Row] = [
        {"start": state, **Spread.of(found).cells("seconds"), "repetitions": len(found)}
        for state, found in seconds.items()
    ]
    return Report(
        rows=[*starts, *idle, *latencies],
        checks=[
            at_most("warm start to the first answer", max(seconds["warm"]), WARM_START_LIMIT_S, "s"),
            *memory_checks(idle),
        ],
        settings={"output_tokens": OUTPUT_LEN, "model": os.environ.get("PRFAAS_MODEL", "default")},
    )


if __name__ == "__main__":
    sys.exit(harness.main("startup", measure, description=__doc__))
