"""Dynamo's mocker beside the simulator: the same requests, the same step times, workers in turn.

`--mocker PYTHON` runs it, in an environment with `ai-dynamo-runtime==1.6.1`, `pydantic` and `uvloop`; without that,
the figures that were recorded last are taken.
"""

import json
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Check, Row, at_most
from simulator.gateways.fixed import TurnsDispatcher
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.outcome import Outcome
from simulator.places import Places
from simulator.scenario import DatacenterSpec, EngineGroup, Scenario
from simulator.simulate import simulate
from simulator.workload.prompts import Conversations, ExponentialTokens, LogNormalTokens
from simulator.workload.traces import TRACE_BLOCK_TOKENS, TracedRequest, read_mooncake
from simulator.workload.workload import TracedRequests

RECORDED = ROOT / "docs" / "results" / "simulator-mocker.json"
NUM_REQUESTS = 400
LIMIT_PERCENT = 10.0

KV_TOKENS = 16_384 * 64
"""The mocker's memory: its default number of blocks times its default block."""
STEP_TOKENS, MAX_BATCH = 8192, 256
BYTES_PER_TOKEN, LINK_GB_S = 131_072, 1.25


class MockedPrefill:
    """The step time of the mocker's prefill workers: a polynomial of the step's tokens, whatever they see."""

    def step_s(
        self, num_tokens: float = 0.0, num_pairs: float = 0.0, num_rows: float = 0.0, context_tokens: float = 0.0
    ) -> float:
        return 1e-3 * (16.50142 + 1.518344e-2 * num_tokens + 4.209989e-7 * num_tokens**2)


class MockedDecode:
    """The step time of its decode workers: a polynomial of the share of KV memory in use."""

    def step_s(
        self, num_tokens: float = 0.0, num_pairs: float = 0.0, num_rows: float = 0.0, context_tokens: float = 0.0
    ) -> float:
        used = context_tokens / KV_TOKENS
        return 1e-3 * max(1.0, 5.74 + 54.01 * used - 25.74 * used**2)


class MockedEngine:
    """The step time of its aggregated workers: prefill, then decode."""

    def step_s(
        self, num_tokens: float = 0.0, num_pairs: float = 0.0, num_rows: float = 0.0, context_tokens: float = 0.0
    ) -> float:
        prefill_s = MockedPrefill().step_s(num_tokens) if num_tokens else 0.0
        return prefill_s + (MockedDecode().step_s(context_tokens=context_tokens) if num_rows else 0.0)


@dataclass(frozen=True)
class MockerCase:
    """One deployment, as both are told of it."""

    name: str
    prefill: int  # workers; 0: all do both
    decode: int
    link_gb_s: float | None = None  # of every transfer, however many there are

    @property
    def options(self) -> dict[str, Any]:
        """Return the mocker's keyword arguments."""
        if not self.prefill:
            return {"num_workers": self.decode}
        engine: dict[str, Any] = {}
        if self.link_gb_s is not None:
            engine = {"kv_transfer_bandwidth": self.link_gb_s, "kv_transfer_bytes_per_token": BYTES_PER_TOKEN}
        return {
            "num_prefill_workers": self.prefill,
            "num_decode_workers": self.decode,
            "prefill_engine_args": {"engine": {"worker_type": "prefill", **engine}},
            "decode_engine_args": {"engine": {"worker_type": "decode", **engine}},
        }

    def simulate(self, trace: list[TracedRequest]) -> Outcome:
        """Run the same on the simulator. Each worker has a cache of its own, as a datacenter of its own has."""
        caches = [f"p{number}" for number in range(self.prefill)] or [f"d{number}" for number in range(self.decode)]
        blocks = KV_TOKENS // TRACE_BLOCK_TOKENS
        dcs = tuple(DatacenterSpec(name, 0, blocks) for name in caches)
        if self.prefill:
            engines = tuple(EngineGroup("prefill", dc, 1, MockedPrefill(), STEP_TOKENS) for dc in caches)
            homes = [("home", self.decode)]
            dcs += (DatacenterSpec("home", 1, 0),)
        else:
            engines, homes = (), [(dc, 1) for dc in caches]
            dcs = (DatacenterSpec("home", 1, 0), *dcs)
        cost = MockedDecode() if self.prefill else MockedEngine()
        engines += tuple(
            EngineGroup("decode", dc, num, cost, STEP_TOKENS, max_batch=MAX_BATCH, kv_tokens=KV_TOKENS)
            for dc, num in homes
        )
        rate = 1e15 if self.link_gb_s is None else 1e9 * self.link_gb_s
        links = tuple(LinkSpec(dc, "home", 1e15, connection_bytes_per_s=rate) for dc in caches if self.prefill)
        scenario = Scenario(
            datacenters=dcs,
            engines=engines,
            links=links,
            requests=TracedRequests(trace, {"home": 1.0}),
            kv=KvSize(BYTES_PER_TOKEN, TRACE_BLOCK_TOKENS),
            policy=_no_policy,
            streamed=False,
        )
        return simulate(scenario, _in_turn)


def _no_policy() -> Any:
    raise AssertionError("workers are taken in turn")


def _in_turn(places: Places, _home: str) -> TurnsDispatcher:
    seats = places.engines.seats.values()
    prefill, decode = ([seat.name for seat in seats if seat.group.role == role] for role in ("prefill", "decode"))
    return TurnsDispatcher(places, decode, prefill)


CASES = (
    MockerCase("4 workers", 0, 4),
    MockerCase("3 prefill, 2 decode, no transfer", 3, 2),
    MockerCase(f"3 prefill, 2 decode, {LINK_GB_S} GB/s", 3, 2, LINK_GB_S),
)


@dataclass(frozen=True)
class MockerFinding:
    """One case of one trace: TTFT in milliseconds."""

    trace: str
    case: MockerCase
    mocker: dict[str, float]
    outcome: Outcome

    @property
    def error_percent(self) -> float:
        return 100 * abs(self._mean_ms - self.mocker["ttft_mean_ms"]) / self.mocker["ttft_mean_ms"]

    @property
    def _mean_ms(self) -> float:
        return 1000 * float(np.mean(self.outcome.ttft_s))

    @property
    def row(self) -> Row:
        tpot_ms = 1000 * float(np.nanmean(self.outcome.time_per_output_token_s))
        return {
            "trace": self.trace,
            "deployment": self.case.name,
            "mocker_ttft_mean_ms": round(self.mocker["ttft_mean_ms"], 1),
            "ttft_mean_ms": round(self._mean_ms, 1),
            "error_%": round(self.error_percent, 2),
            "mocker_p99_ms": round(self.mocker["ttft_p99_ms"]),
            "p99_ms": round(1000 * self.outcome.ttft_quantile_s(0.99)),
            "mocker_tpot_ms": round(self.mocker["tpot_mean_ms"], 2),
            "tpot_ms": round(tpot_ms, 2),
        }

    @property
    def check(self) -> Check:
        return at_most(f"{self.trace}, {self.case.name}: mean TTFT", self.error_percent, LIMIT_PERCENT, "%")


def synthetic_trace(num_requests: int = NUM_REQUESTS) -> list[TracedRequest]:
    """Return requests of the conversation trace's size, with three of them every second: for who lacks the trace."""
    prompts = Conversations(
        system_tokens=TRACE_BLOCK_TOKENS,
        first=LogNormalTokens(9.0, 0.9, 64, 100_000),
        later=LogNormalTokens(6.5, 1.0, 16, 20_000),
        outputs=ExponentialTokens(340.0),
        num_open=200,
    ).prompts(random.Random(7), TRACE_BLOCK_TOKENS)
    return [
        TracedRequest(index // 9 * 3.0, prompt) for index, prompt in zip(range(num_requests), prompts, strict=False)
    ]


def compare_mocker(trace: Path | None, python: Path | None, scratch: Path) -> Iterator[MockerFinding]:
    """Compare all cases on a synthetic trace, and on the first requests of a recorded one if there is one."""
    traces = {"synthetic": synthetic_trace()}
    if trace is not None:
        traces["conversation"] = read_mooncake(trace, NUM_REQUESTS)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"figures": {}}
    if python is not None:
        recorded = record(traces, python, scratch)
    for name, requests in traces.items():
        for case in CASES:
            figures = recorded["figures"].get(name, {}).get(case.name)
            if figures is not None:
                yield MockerFinding(name, case, figures, case.simulate(requests))


def record(traces: dict[str, list[TracedRequest]], python: Path, scratch: Path) -> dict[str, Any]:
    """Run the mocker in its own environment; write and return what it says."""
    figures: dict[str, dict[str, Any]] = {}
    for name, requests in traces.items():
        path = scratch / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in _mooncake_lines(requests)))
        figures[name] = {case.name: _run_mocker(path, case, python, scratch) for case in CASES}
    options = {case.name: case.options for case in CASES}
    found = {"mocker": "ai-dynamo-runtime==1.6.1", "call": CALL.strip(), "options": options, "figures": figures}
    RECORDED.write_text(json.dumps(found, indent=2) + "\n")
    return found


CALL = """
dynamo._core.run_mocker_trace_replay([trace], trace_block_size=512, report_jsonl_path=report, **options)
"""


def _run_mocker(trace: Path, case: MockerCase, python: Path, scratch: Path) -> dict[str, float]:
    report = scratch / "report.jsonl"
    program = (
        "import json, sys, dynamo._core\n"
        "trace, report, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n" + CALL
    )
    command = [str(python), "-c", program, str(trace), str(report), json.dumps(case.options)]
    subprocess.run(command, check=True, timeout=300, env={"DYN_LOG": "error"})
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    times = np.array([row["ttft_ms"] for row in rows])
    per_token = [row["itl_ms"] for row in rows if row["itl_ms"]]
    reused = sum(row["reused_input_tokens"] for row in rows) / sum(row["input_length"] for row in rows)
    return {
        "ttft_mean_ms": float(times.mean()),
        "ttft_p99_ms": float(np.quantile(times, 0.99, method="higher")),
        "tpot_mean_ms": float(np.mean(per_token)),
        "reused_share": reused,
        "requests": len(rows),
    }


def _mooncake_lines(requests: list[TracedRequest]) -> Iterator[dict[str, Any]]:
    ids: dict[bytes, int] = {}
    for number, (at_s, prompt) in enumerate(requests):
        names: list[bytes] = [*prompt.keys]
        if prompt.num_tokens % TRACE_BLOCK_TOKENS:
            names.append(b"end of %d" % number)
        hash_ids = [ids.setdefault(name, len(ids)) for name in names]
        yield {
            "timestamp": round(at_s * 1000),
            "input_length": prompt.num_tokens,
            "output_length": prompt.num_output,
            "hash_ids": hash_ids,
        }
