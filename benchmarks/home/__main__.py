"""Never slower than home: the time to the first token of what the router chooses, beside each fixed choice.

Four gateways send to the same engines: one routes by cost, the others always have the prompt computed by decode alone,
by the prefill worker at home, or by the one in the other datacenter. They are asked in turn, one request at a time,
for prompts that nobody has seen. Before anything counts, every way is taken until workers and links are measured.

`benchmarks.home.sites` says which worker has which cores. Needs root (network namespaces).
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import serve
from benchmarks.harness import Report, Row, at_most
from benchmarks.home.sites import FIXED, HOME_SHARES, LINES, ROUTER, gateway_of, layout
from benchmarks.streaming.asking import Bench, open_bench
from benchmarks.wan import command
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, wan
from benchmarks.wan.suite import EAST, WEST, log_folder, wan_suite

LENGTHS = (64, 256, 512, 1024, 2048, 4096, 8000)
QUICK_LENGTHS = (64, 512)
LONG_TOKENS = 4096
OF_BEST = 1.10
WARM_UP_TOKENS = (256, 1024, 512, 2048)
REPORTED_AFTER_S = 3.0
"""Workers and pools report twice a second; a gateway that has heard of what it measured has heard of all."""


QUIET_S = 0.7
"""Before each request: what other gateways had computed is published, and every worker has reported that it is idle."""


class HomeSample(NamedTuple):
    """One request."""

    contestant: str
    num_tokens: int
    ttft_s: float
    kind: str  # of the plan
    forecast_s: float


async def ask(bench: Bench, contestant: str, num_tokens: int) -> HomeSample:
    """Ask for a prompt that nobody has seen. Raises `RuntimeError`."""
    gateway = gateway_of(contestant)
    await asyncio.sleep(QUIET_S)
    answer = await bench.ask(bench.suite.http_url(gateway), bench.new_prompt(num_tokens))
    plan = bench.suite.last_event(gateway, "request_planned")
    return HomeSample(contestant, num_tokens, answer.ttft_s, plan["kind"], plan["forecast_ttft_s"])


async def warm_up(bench: Bench, contestants: Sequence[str], num_rounds: int) -> None:
    """Have each way measured: by the workers, by the pools, and by the router, which is told nothing."""
    for number in range(num_rounds):
        for contestant in contestants:
            await ask(bench, contestant, WARM_UP_TOKENS[number % len(WARM_UP_TOKENS)])
        await asyncio.sleep(REPORTED_AFTER_S / num_rounds)


async def samples(bench: Bench, options: argparse.Namespace) -> list[HomeSample]:
    """Ask every contestant once a round, forwards and backwards in turn."""
    contestants = [ROUTER, *FIXED]
    await warm_up(bench, contestants, 1 if options.quick else len(WARM_UP_TOKENS))
    found: list[HomeSample] = []
    for length in QUICK_LENGTHS if options.quick else options.lengths:
        rounds = options.long_rounds if length >= LONG_TOKENS else options.rounds
        for number in range(2 if options.quick else rounds):
            in_turn = contestants if number % 2 == 0 else contestants[::-1]
            found += [await ask(bench, contestant, length) for contestant in in_turn]
    return found


def row_of(scenario: str, found: Sequence[HomeSample]) -> Row:
    """Return what the samples of one length say."""
    ttft_s = {name: [s.ttft_s for s in found if s.contestant == name] for name in (ROUTER, *FIXED)}
    medians = {name: median(values) for name, values in ttft_s.items()}
    best = min(FIXED, key=lambda name: medians[name])
    chosen = [sample for sample in found if sample.contestant == ROUTER]
    kinds = Counter(sample.kind for sample in chosen).most_common()
    return {
        "scenario": scenario,
        "tokens": found[0].num_tokens,
        "rounds": len(chosen),
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        "forecast_s": round(median(sample.forecast_s for sample in chosen), 4),
        "chosen": ", ".join(f"{kind} {count}" for kind, count in kinds),
        "best": best,
        "router_to_best": round(medians[ROUTER] / medians[best], 3),
    }


def report(found: dict[str, list[HomeSample]], settings: Row) -> Report:
    """A row and a target for each scenario and length."""
    rows: list[Row] = []
    checks = []
    for scenario, all_samples in found.items():
        for length in sorted({sample.num_tokens for sample in all_samples}):
            of_length = [sample for sample in all_samples if sample.num_tokens == length]
            rows.append(row := row_of(scenario, of_length))
            ratio = float(row["router_to_best"] or 0)
            checks.append(at_most(f"{scenario}, {length} tokens: TTFT of the router to the best", ratio, OF_BEST))
    return Report(rows, checks, settings)


async def run(network: Wan, scenario: str, options: argparse.Namespace) -> list[HomeSample]:
    line = LINES[scenario]
    environ = {"PRFAAS_DTYPE": options.dtype, "PRFAAS_THREADS": "1", "PRFAAS_REQUEST_TIMEOUT_S": "300"}
    with (
        log_folder(options.logs) as folder,
        network.inside(WEST),
        wan_suite(network, folder, layout(has_wan=line is not None), **environ) as suite,
    ):
        async with serve.new_session() as session:
            bench = await open_bench(network, suite, session, max((*options.lengths, *WARM_UP_TOKENS)))
            return await samples(bench, options)


def measure(options: argparse.Namespace) -> Report:
    found = {}
    for scenario in ("wide WAN",) if options.quick else options.scenarios:
        with wan([EAST, WEST], LINES[scenario] or Line()) as network:
            found[scenario] = asyncio.run(run(network, scenario, options))
    return report(found, {"dtype": options.dtype, **{f"share_of_{name}": share for name, share in HOME_SHARES.items()}})


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=9, help="of each length (default: %(default)s)")
    parser.add_argument(
        "--long-rounds", type=int, default=9, help=f"from {LONG_TOKENS} tokens on (default: %(default)s)"
    )
    parser.add_argument("--scenarios", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the processes' logs here")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: %(default)s")


if __name__ == "__main__":
    sys.exit(command.main("home", measure, add_options, description=__doc__))
