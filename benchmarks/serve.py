"""Load generator for any OpenAI-compatible server; result keys as those of `vllm bench serve`.

python -m benchmarks.serve --url http://127.0.0.1:8000 --input-len 2048 --output-len 64 --num-prompts 16
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from math import inf

import aiohttp
from tqdm import tqdm

from benchmarks import harness
from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.prompts import BenchPrompt, Dataset, make_prompt
from benchmarks.suite import URL, suite

# aiohttp's default of five minutes in total would end a long queue's requests.
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30)


@dataclass(frozen=True)
class Load:
    """What is asked of the server, and how fast. A rate of `inf` sends at once, `max_concurrency` of 0 is no limit."""

    url: str
    model: str | None = None
    input_len: int = 512
    output_len: int = 64
    num_prompts: int = 16
    request_rate: float = inf
    max_concurrency: int = 0
    seed: int = 0
    dataset: Dataset = "random"
    ignore_eos: bool = True


@dataclass(frozen=True)
class LatencyLimits:
    """A request is good when it meets both; None asks nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met_by(self, outcome: RequestOutcome) -> bool:
        tpot_s = outcome.tpot_s
        return (self.ttft_s is None or outcome.ttft_s <= self.ttft_s) and (
            self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s
        )


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0))


async def first_model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/v1/models") as response:
        response.raise_for_status()
        return str((await response.json())["data"][0]["id"])


async def make_prompts(session: aiohttp.ClientSession, load: Load, model: str) -> list[BenchPrompt]:
    return [
        await make_prompt(session, load.url, model, load.dataset, load.seed * 1_000_003 + i, load.input_len)
        for i in range(load.num_prompts)
    ]


async def arrivals(count: int, rate: float, seed: int) -> AsyncIterator[int]:
    """0 … count-1, spaced as a Poisson process of `rate` per second; against the clock, so that lateness is made up."""
    rng = random.Random(seed)
    due = time.perf_counter()
    for i in range(count):
        if rate != inf and i:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield i


async def run_load(
    session: aiohttp.ClientSession, load: Load, prompts: Sequence[BenchPrompt], model: str, progress: bool = False
) -> tuple[list[RequestOutcome], float]:
    """The outcomes in the order of sending, and the seconds from the first request to the last answer."""
    slots = asyncio.Semaphore(load.max_concurrency or len(prompts) or 1)

    with tqdm(total=len(prompts), unit="request", disable=not progress) as bar:

        async def one(prompt: BenchPrompt) -> RequestOutcome:
            async with slots:
                request = CompletionRequest(load.url, model, prompt, load.output_len, load.ignore_eos)
                outcome = await complete(session, request)
            bar.update()
            return outcome

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(prompts[i])) async for i in arrivals(len(prompts), load.request_rate, load.seed)
            ]
        duration_s = time.perf_counter() - started
    return [task.result() for task in tasks], duration_s


def summarise(outcomes: Sequence[RequestOutcome], duration_s: float, slo: LatencyLimits | None = None) -> harness.Row:
    """Latencies are of the requests that completed; `request_goodput` is None when no objective was given."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    total_input = sum(outcome.prompt_tokens for outcome in good)
    total_output = sum(outcome.output_tokens for outcome in good)
    row: harness.Row = {
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "duration": round(duration_s, 3),
        "total_input_tokens": total_input,
        "total_cached_tokens": sum(outcome.cached_tokens for outcome in good),
        "total_output_tokens": total_output,
        "request_throughput": round(len(good) / duration_s, 4),
        "request_goodput": None if slo is None else round(sum(map(slo.met_by, good)) / duration_s, 4),
        "output_throughput": round(total_output / duration_s, 3),
        "total_token_throughput": round((total_input + total_output) / duration_s, 3),
    }
    samples = {
        "ttft": [outcome.ttft_s for outcome in good],
        "tpot": [outcome.tpot_s for outcome in good if outcome.tpot_s is not None],
        "itl": [itl for outcome in good for itl in outcome.itls_s],
        "e2el": [outcome.end_s for outcome in good],
    }
    for name, values in samples.items():
        row |= _statistics(name, [value * 1000 for value in values])
    return row


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks, as numpy's default."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def _statistics(name: str, values_ms: Sequence[float]) -> harness.Row:
    if not values_ms:
        return {f"{statistic}_{name}_ms": None for statistic in ("mean", "median", "std", "p99")}
    return {
        f"mean_{name}_ms": round(statistics.fmean(values_ms), 3),
        f"median_{name}_ms": round(statistics.median(values_ms), 3),
        f"std_{name}_ms": round(statistics.pstdev(values_ms), 3),
        f"p99_{name}_ms": round(percentile(values_ms, 99), 3),
    }


async def serve(
    load: Load, slo: LatencyLimits | None = None, progress: bool = False
) -> tuple[harness.Row, list[RequestOutcome]]:
    async with new_session() as session:
        model = load.model or await first_model(session, load.url)
        prompts = await make_prompts(session, load, model)
        if progress and any(prompt.num_tokens is None for prompt in prompts):
            print("the server has no /tokenize: lengths are words, not tokens", file=sys.stderr)
        outcomes, duration_s = await run_load(session, load, prompts, model, progress)
    return summarise(outcomes, duration_s, slo), outcomes


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="without /v1 (default: a suite of our own, started for this)")
    parser.add_argument("--model", help="default: the first that the server names")
    parser.add_argument("--input-len", type=int, default=512, help="tokens per prompt (default: %(default)s)")
    parser.add_argument("--output-len", type=int, default=64, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--num-prompts", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--request-rate", type=float, default=inf, help="requests per second, Poisson (default: inf)")
    parser.add_argument("--max-concurrency", type=int, default=0, help="requests in flight at most (default: no limit)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed asks the same prompts (default: %(default)s)"
    )
    parser.add_argument("--dataset", choices=("random", "text"), default="random", help="default: %(default)s")
    parser.add_argument("--no-ignore-eos", dest="ignore_eos", action="store_false", help="for servers that refuse it")
    parser.add_argument("--slo-ttft-ms", type=float, help="with --slo-tpot-ms: what request_goodput counts")
    parser.add_argument("--slo-tpot-ms", type=float)


def measure(options: argparse.Namespace) -> harness.Report:
    if options.url is not None:
        return _measure_at(options.url.rstrip("/"), options)
    with suite():
        return _measure_at(URL, options)


def _measure_at(url: str, options: argparse.Namespace) -> harness.Report:
    load = Load(
        url=url,
        model=options.model,
        input_len=options.input_len,
        output_len=min(options.output_len, 8) if options.quick else options.output_len,
        num_prompts=min(options.num_prompts, 2) if options.quick else options.num_prompts,
        request_rate=options.request_rate,
        max_concurrency=options.max_concurrency,
        seed=options.seed,
        dataset=options.dataset,
        ignore_eos=options.ignore_eos,
    )
    slo = None
    if options.slo_ttft_ms is not None or options.slo_tpot_ms is not None:
        slo = LatencyLimits(_seconds(options.slo_ttft_ms), _seconds(options.slo_tpot_ms))
    row, outcomes = asyncio.run(serve(load, slo, progress=True))
    for error in sorted({outcome.error for outcome in outcomes if outcome.error}):
        print(f"failed: {error}", file=sys.stderr)
    settings: harness.Row = {
        key: str(value) if value == inf else value for key, value in vars(load).items() if key != "url"
    }
    return harness.Report(rows=[row], settings=settings)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


if __name__ == "__main__":
    sys.exit(harness.main("serve", measure, add_options, description=__doc__))
