"""The table of a rival: what a round trip adds to the time to the first token, and a load across datacenters.

NVIDIA Dynamo's "Prefill as a Service" guide (ai-dynamo/dynamo, issues 9478 and 11236) publishes times to the first
token of an 8B model, 128 KiB of KV a token, over 30 to 40 Gbit/s. Its prompts were most likely cached in the other
datacenter, so that its times are transfer times. Here a link carries a prompt's KV in the same time as theirs, whatever
bytes a model has for a token. Ways:

- streamed, raw frames; coded: with the codec that the gateway plans; stored: forwarded when prefill has ended;
- pulled: the prompt is in the other datacenter's pool already, and nobody computes it again;
- control: as streamed, over a line without delay and as fast as this machine is; alone: decode computes the prompt.

All but `pulled` are prompts that nobody has seen. `added` is the time beyond the control of the same length, for ways
that compute the same. `cold` is the first hand-over after the start: engines are warm, connections not open.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import serve
from benchmarks.harness import Check, Report, Row, Spread, at_most
from benchmarks.prompts import BenchPrompt
from benchmarks.streaming.accounting import Account, accounted
from benchmarks.streaming.asking import Bench, WanAnswer, open_bench
from benchmarks.wan.line import Line
from benchmarks.wan.network import wan
from benchmarks.wan.suite import EAST, WEST, usual_layout, wan_suite
from shared.kv.hashing import num_prefix_blocks
from shared.kv.layout import KvLayout, iter_layers
from shared.model.files.catalog import BUILT_IN, ModelFiles, resolve
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import Channels

RIVAL_TOKEN_BYTES = 128 * 1024
RIVAL_RATE = 35e9 / 8  # bytes/s: "about 30 to 40 Gbit/s"
ROUND_TRIPS_S = (0.002, 0.0415)
LOADED_ROUND_TRIP_S = 0.0415  # the rival's load was between datacenters
LENGTHS = (4000, 8000, 16000, 32000)
QUICK_LENGTHS = (1000,)
RIVAL_TTFT_S = {
    0.002: {4000: 0.144, 8000: 0.161, 16000: 0.281, 32000: 0.56},
    0.0415: {4000: 0.139, 8000: 0.291, 16000: 0.720, 32000: 1.647},
}
"""Published, 4K to 32K; the last one at 2 ms is their extrapolation."""
FREE = Line(0.0, 1.25e9)
"""What a control crosses: no delay, and a rate that the relay cannot reach."""

REMOTE = {
    "PRFAAS_ROUTING_POLICY": "threshold",
    "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",
    "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "0",
    "PRFAAS_CODEC": "raw",
}
GATEWAYS: Mapping[str, Mapping[str, str]] = {
    "coded": {**REMOTE, "PRFAAS_CODEC": "auto"},
    "alone": {"PRFAAS_ROUTING_POLICY": "threshold", "PRFAAS_DECODE_THRESHOLD_TOKENS": str(1 << 30)},
    "default": {
        "PRFAAS_ROUTING_POLICY": "",
        "PRFAAS_DECODE_THRESHOLD_TOKENS": "",
        "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "",
        "PRFAAS_CODEC": "",
    },
}
WAYS = ("streamed", "coded", "stored", "pulled")
MU, SIGMA, AT_ONCE = 7.0, 1.5, 8
REQUESTS, QUICK_REQUESTS = 200, 8
SHORTEST = 16
WARM_TOKENS = 600
INDEXED_S = 1.0
"""After which the gateway knows what a pool has; a pool tells twenty times a second and more."""
LIMIT_S = 1200.0


class Cell(NamedTuple):
    """Answers of one way at one round trip and length; a control has no round trip."""

    way: str
    round_trip_s: float
    num_tokens: int
    rate: float  # bytes/s
    answers: list[WanAnswer]


def lanes(lane: str) -> dict[str, str]:
    """Return the variable that allows one lane, none for `auto`."""
    return {} if lane == "auto" else {"PRFAAS_LANES": lane}


def needed_bytes(layout: KvLayout, num_tokens: int) -> int:
    """Return the bytes that decode needs of a prompt: a window's layers are needed at its end only."""
    num_blocks = num_prefix_blocks(num_tokens, layout.block_tokens)
    masks = (layout.needed_layers(block, num_blocks) for block in range(num_blocks))
    return sum(layout.entry_bytes(layer) for mask in masks for layer in iter_layers(mask))


def rate_of(layout: KvLayout, num_tokens: int) -> float:
    """Return the bytes/s at which our bytes of a prompt take as long as the rival's take on its link."""
    return needed_bytes(layout, num_tokens) / (num_tokens * RIVAL_TOKEN_BYTES / RIVAL_RATE)


class RivalTable:
    """Asks a suite for the table's cells, a round trip at a time."""

    def __init__(self, bench: Bench, files: ModelFiles, layout: KvLayout, channels: Channels) -> None:
        self._bench = bench
        self._files = files
        self._layout = layout
        self._prefill = PrefillStub(channels.get(bench.suite.grpc_address("prefill-east")))
        suite = bench.suite
        self._urls = {
            "streamed": suite.url,
            "stored": suite.stored_url,
            "pulled": suite.url,
            "control": suite.url,
            **{name: suite.gateway_url(name) for name in GATEWAYS},
        }

    async def warm_engines(self) -> None:
        """Both engines compute a prompt; no pool asks the other one for anything."""
        await self._bench.ask(self._urls["alone"], self._bench.new_prompt(WARM_TOKENS))
        await self._computed_in_the_east(self._bench.new_prompt(WARM_TOKENS))

    async def ask(self, way: str, num_tokens: int) -> WanAnswer:
        """Ask once. Raises `RuntimeError`."""
        prompt = self._bench.new_prompt(num_tokens)
        if way == "pulled":
            await self._computed_in_the_east(prompt)
            await asyncio.sleep(INDEXED_S)
        answer = await self._bench.ask(self._urls[way], prompt)
        if way == "pulled" and answer.cached_tokens < num_tokens - 2 * self._layout.block_tokens:
            raise RuntimeError(f"only {answer.cached_tokens} of {num_tokens} tokens were found in the other pool")
        return answer

    async def load(self, name: str, lengths: Sequence[int], limit_s: float = LIMIT_S) -> Account:
        """Ask for prompts of these lengths, `AT_ONCE` at a time, and account for each."""
        prompts = [BenchPrompt(self._bench.new_prompt(length), length) for length in lengths]
        return await accounted(self._bench.session, self._urls[name], self._bench.model, prompts, AT_ONCE, limit_s)

    async def _computed_in_the_east(self, prompt: Sequence[int]) -> None:
        """Have the prefill worker compute a prompt that nobody else asks for; its pool then has it."""
        request = pb.PrefillRequest(
            token_ids=prompt,
            num_blocks=num_prefix_blocks(len(prompt), self._layout.block_tokens),
            fingerprint=self._files.fingerprint,
            layout_hash=self._layout.hash,
            pool_nodes=[self._bench.suite.grpc_address("cachepool-east")],
        )
        async for _ in self._prefill.Prefill(request, timeout=LIMIT_S):
            pass


async def _cells(
    table: RivalTable, bench: Bench, layout: KvLayout, round_trip_s: float, options: argparse.Namespace
) -> tuple[float, list[Cell]]:
    """Return the cold time and all cells of one round trip, ways in turn."""
    found: dict[tuple[str, int], Cell] = {}
    cold_s = 0.0
    for repetition in range(options.repetitions):
        for num_tokens in options.lengths:
            rate = rate_of(layout, num_tokens)
            ways = (*WAYS, "control", "alone")
            for way in ways if repetition % 2 == 0 else reversed(ways):
                bench.network.shape(FREE if way == "control" else Line(round_trip_s / 2, rate))
                if not cold_s:
                    cold_s = (await table.ask("streamed", num_tokens)).ttft_s
                cell = found.setdefault((way, num_tokens), Cell(way, round_trip_s, num_tokens, rate, []))
                cell.answers.append(await table.ask(way, num_tokens))
    return cold_s, list(found.values())


def table_rows(cold_s: float, cells: Sequence[Cell]) -> tuple[list[Row], list[Check]]:
    """One row for each cell of one round trip. A streamed prompt should add less than a stored one."""
    typical = {(cell.way, cell.num_tokens): _median(cell) for cell in cells}
    shortest = min(cell.num_tokens for cell in cells)
    rows: list[Row] = []
    for cell in cells:
        ttft_s = Spread.of([answer.ttft_s for answer in cell.answers])
        rival_s = RIVAL_TTFT_S.get(cell.round_trip_s, {}).get(cell.num_tokens)
        wire_bytes = statistics.median(answer.wire_bytes for answer in cell.answers)
        is_remote = cell.way in WAYS
        rows.append(
            {
                "round_trip_ms": round(1000 * cell.round_trip_s, 1),
                "tokens": cell.num_tokens,
                "way": cell.way,
                "mbit_per_s": round(cell.rate * 8 / 1e6) if is_remote else None,
                "wire_mb": round(wire_bytes / 1e6, 1),
                **ttft_s.cells("ttft_s", 3),
                "added_ms": None
                if cell.way in ("pulled", "control", "alone")
                else round(1000 * (ttft_s.median - typical["control", cell.num_tokens])),
                "cold_s": round(cold_s, 3) if cell.way == "streamed" and cell.num_tokens == shortest else None,
                "rival_s": rival_s if is_remote else None,
            }
        )
    checks = [
        at_most(
            f"{1000 * cell.round_trip_s:g} ms, {cell.num_tokens} tokens: streamed against stored",
            _median(cell) / typical["stored", cell.num_tokens],
            1.0,
        )
        for cell in cells
        if cell.way == "streamed"
    ]
    checks += [
        at_most(
            f"{1000 * cell.round_trip_s:g} ms, {cell.num_tokens} tokens: pulled against the rival",
            _median(cell),
            RIVAL_TTFT_S[cell.round_trip_s][cell.num_tokens],
            "s",
        )
        for cell in cells
        if cell.way == "pulled" and cell.num_tokens in RIVAL_TTFT_S.get(cell.round_trip_s, {})
    ]
    return rows, checks


def _median(cell: Cell) -> float:
    return statistics.median(answer.ttft_s for answer in cell.answers)


def lengths_of(count: int, longest: int, seed: int = 1) -> list[int]:
    """Return the rival's lengths: log-normal, clipped to the context."""
    draw = random.Random(seed)
    return [min(longest, max(SHORTEST, int(draw.lognormvariate(MU, SIGMA)))) for _ in range(count)]


def load_row(name: str, round_trip_s: float, account: Account) -> tuple[Row, Check]:
    """All requests of a load, each accounted for."""
    row: Row = {
        "load": name,
        "round_trip_ms": round(1000 * round_trip_s, 1),
        "requests": account.num_asked,
        "answered": len(account.ttfts_s),
        "failed": sum(account.failed.values()),
        "reasons": "; ".join(f"{reason}: {count}" for reason, count in account.failed.items()) or "none",
        "unaccounted": account.num_unaccounted,
        "requests_per_s": round(len(account.ttfts_s) / account.seconds, 3),
        "ttft_p50_s": round(serve.percentile(account.ttfts_s, 50), 3) if account.ttfts_s else None,
        "ttft_p99_s": round(serve.percentile(account.ttfts_s, 99), 3) if account.ttfts_s else None,
    }
    lost = account.num_unaccounted + sum(account.failed.values())
    return row, at_most(f"load {name}, {1000 * round_trip_s:g} ms: requests that were not answered", lost, 0)


async def _measure_round_trip(
    round_trip_s: float, files: ModelFiles, layout: KvLayout, options: argparse.Namespace, report: Report
) -> None:
    environ = {
        **REMOTE,
        **lanes(options.lane),
        "PRFAAS_MODEL": options.model,
        "PRFAAS_DTYPE": layout.dtype,
        "PRFAAS_THREADS": "1",
        "PRFAAS_KV_BYTES": "2GiB",
        "PRFAAS_POOL_BYTES": "2GiB",
        "PRFAAS_POOL_PULL_TIMEOUT_S": str(LIMIT_S),
        "PRFAAS_REQUEST_TIMEOUT_S": str(LIMIT_S),
    }
    longest = max(options.lengths)
    with (
        wan([EAST, WEST], Line(round_trip_s / 2, rate_of(layout, min(options.lengths)))) as network,
        tempfile.TemporaryDirectory() as folder,
        network.inside(WEST),
        wan_suite(network, Path(folder), usual_layout(GATEWAYS), **environ) as suite,
    ):
        async with serve.new_session() as session, Channels() as channels:
            bench = await open_bench(network, suite, session, longest)
            table = RivalTable(bench, files, layout, channels)
            await table.warm_engines()
            rows, checks = table_rows(*await _cells(table, bench, layout, round_trip_s, options))
            report.rows += rows
            report.checks += checks
            bench.network.shape(Line(round_trip_s / 2, rate_of(layout, longest)))
            for name in options.loads if round_trip_s == LOADED_ROUND_TRIP_S else ():
                account = await table.load(name, lengths_of(options.requests, longest))
                row, check = load_row(name, round_trip_s, account)
                report.rows.append(row)
                report.checks.append(check)


def measure(options: argparse.Namespace) -> Report:
    """Measure the table. Raises `WanUnavailable`."""
    options.lengths = options.length or (QUICK_LENGTHS if options.quick else LENGTHS)
    options.requests = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    options.loads = options.load or (("streamed",) if options.quick else ("streamed", "alone", "default"))
    options.repetitions = 1 if options.quick else options.repetitions
    files = resolve(options.model, Path("~/.cache/prfaas").expanduser())
    layout = files.config().kv_layout(64, options.dtype)
    report = Report(
        settings={
            "model": options.model,
            "dtype": layout.dtype,
            "lane": options.lane,
            "context": files.config().max_context,
            "bytes_per_token_of_the_rival": RIVAL_TOKEN_BYTES,
            "link_of_the_rival_mbit_per_s": RIVAL_RATE * 8 / 1e6,
            "repetitions": options.repetitions,
        }
    )
    for round_trip_s in ROUND_TRIPS_S[-1:] if options.quick else ROUND_TRIPS_S:
        asyncio.run(_measure_round_trip(round_trip_s, files, layout, options, report))
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the rival's table")
    group.add_argument("--model", choices=BUILT_IN, default=BUILT_IN[1], help="default: %(default)s, for its context")
    group.add_argument("--length", type=int, action="append", help=f"may be repeated; default: {LENGTHS}")
    group.add_argument("--requests", type=int, default=0, help=f"of a load (default: {REQUESTS})")
    group.add_argument(
        "--load", action="append", choices=("streamed", "coded", "stored", "alone", "default"), help="may be repeated"
    )
