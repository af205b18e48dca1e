"""Times to the first token, live beside simulated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Check, Row, at_most
from benchmarks.simulator.live.asking import Answered
from benchmarks.simulator.live.session import LivePlan, LiveRun, LiveShare, run_live
from simulator.outcome import Outcome

LIMIT_PERCENT = 20.0
QUANTILES = (0.5, 0.9)


@dataclass(frozen=True)
class LiveFinding:
    """One load on both."""

    policy: str
    load: LiveShare
    outcome: Outcome

    @property
    def rows(self) -> list[Row]:
        """Return a row for each quantile of each way, and of all together."""
        answers = self.load.answers
        kinds = sorted({one.kind for one in answers})
        found = [self._row("all", quantile) for quantile in QUANTILES]
        return found + [self._row(kind, quantile) for kind in kinds for quantile in QUANTILES if len(kinds) > 1]

    def checks(self, limit_percent: float) -> list[Check]:
        return [
            at_most(
                f"live, {self.policy}, load {self.load.share}: TTFT p{round(100 * quantile)}",
                abs(self._error_percent(quantile)),
                limit_percent,
                "%",
            )
            for quantile in QUANTILES
        ]

    def _times(self, way: str) -> tuple[list[float], list[float]]:
        """Return the times of the requests that took a way, live and simulated."""
        live = [one.ttft_s for one in self.load.answers if way in ("all", one.kind)]
        kinds = zip(self.outcome.ttft_s.tolist(), self.outcome.kind, strict=True)
        return live, [ttft_s for ttft_s, kind in kinds if way in ("all", kind)]

    def _error_percent(self, quantile: float, way: str = "all") -> float:
        live, simulated = (float(np.quantile(times, quantile)) if times else np.nan for times in self._times(way))
        return 100 * (simulated / live - 1)

    def _row(self, way: str, quantile: float) -> Row:
        live, simulated = self._times(way)
        return {
            "policy": self.policy,
            "load": self.load.share,
            "requests_per_s": round(self.load.per_s, 3),
            "way": way,
            "requests": len(live),
            "quantile": f"p{round(100 * quantile)}",
            "live_ttft_s": round(float(np.quantile(live, quantile)), 3),
            "simulated_ttft_s": round(float(np.quantile(simulated, quantile)), 3) if simulated else None,
            "error_%": round(self._error_percent(quantile, way), 1),
        }


def compare_live(plan: LivePlan, logs: Path | None) -> tuple[LiveRun, list[LiveFinding]]:
    """Run the suite, then the simulator with the same requests. Raises `WanUnavailable`, RuntimeError."""
    run = run_live(plan, logs)
    return run, list(findings(run))


def findings(run: LiveRun) -> Iterator[LiveFinding]:
    for load in run.loads:
        yield LiveFinding(run.policy, load, run.loaded(load).simulate(run.policy, load.answers))


def facts(run: LiveRun) -> list[Row]:
    """Return what the simulator was told."""
    case = run.case
    published = [("idle", run.published), *((str(load.share), load.published) for load in run.loads)]
    rows: list[Row] = [
        {
            "load": load,
            "engine": name,
            "base_ms": round(1e3 * engine.profile.base_s, 2),
            "token_ms": round(1e3 * engine.profile.token_s, 3),
            "pair_us": round(1e6 * engine.profile.pair_s, 3),
            "row_ms": round(1e3 * engine.profile.row_s, 2),
            "context_us": round(1e6 * engine.profile.context_s, 2),
            "step_tokens": engine.step_tokens,
            "hand_over_mb_s": round(engine.hand_over_bytes_per_s / 1e6, 1),
        }
        for load, known in published
        for name, engine in known.engines.items()
    ]
    rows += [
        {
            "load": load,
            "link": f"{link.peer_dc} to {pool.dc}",
            "goodput_mb_s": round(link.goodput_bytes_per_s / 1e6, 2),
            "round_trip_ms": round(1e3 * link.round_trip_s, 1),
            "kv_bytes_per_token": round(case.kv.bytes_per_token),
            "plan_ms": round(1e3 * case.calls.plan_s, 1),
            "call_ms": round(1e3 * case.calls.call_s, 1),
            "hand_over_ms": round(1e3 * case.calls.hand_over_s, 1),
            "sustained_per_s": round(run.sustained_per_s, 3),
        }
        for load, known in published
        for pool in known.pools.values()
        for link in pool.links
    ]
    return rows + _idle(run.idle, case.simulate(run.policy, run.idle))


def _idle(answers: Sequence[Answered], outcome: Outcome) -> list[Row]:
    """Return how an idle suite compares, by way."""
    found = {one.kind: [i for i, other in enumerate(answers) if other.kind == one.kind] for one in answers}
    return [
        {
            "idle": kind,
            "prompts": len(rows),
            "live_ttft_mean_s": round(float(np.mean([answers[row].ttft_s for row in rows])), 3),
            "simulated_ttft_mean_s": round(float(np.mean(outcome.ttft_s[rows])), 3),
        }
        for kind, rows in sorted(found.items())
    ]
