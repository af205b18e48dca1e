"""A tenant that floods, and the time to the first token of another one.

The victim asks in a closed loop of one, with pauses. The flooder has many prompts open at any time. The suite runs as
`make up` starts it. Rows: the victim alone; beside the flood, as another tenant; beside the flood, as the same tenant;
beside the flood without a dispatch window, so that all that comes waits in the workers' queues. The flood's own rate is
measured with and without the window. Nothing else may use the Procfile's ports.
"""

import argparse
import statistics
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.fairness.asking import FLOODER, VICTIM, AskingPace, FairnessTenants, FairnessTurn, PromptShape
from benchmarks.harness import Report, Row, Spread, at_least, at_most
from benchmarks.serve import percentile
from benchmarks.suite import URL, suite

SHAPES = (PromptShape(256, 512), PromptShape(1024, 512), PromptShape(1024, 128))
RATIO = 1.5
KEPT_RATE = 0.95
ONE_ENGINE = {"PRFAAS_ROUTING_POLICY": "threshold"}
"""Decode computes these prompts itself: the engines of one host share its cores, which no plan knows."""

NO_WINDOW = {"PRFAAS_DISPATCH_WINDOW_S": "0"}

ALONE, FAIR, SAME, OFF = "alone", "flooded", "flooded, one tenant", "flooded, no window"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--asked", type=int, default=60, help="victim's requests in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a flood alone (default: %(default)s)")
    parser.add_argument("--flooders", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--only", action="append", choices=[shape.name for shape in SHAPES], metavar="SHAPE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the suite")


class FairnessBenchmark:
    """Collects turns by shape and condition, over suites that are started and stopped."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._quick = options.quick
        self._asked = 4 if options.quick else options.asked
        self._seconds = 5.0 if options.quick else options.seconds
        self._rounds = 1 if options.quick else options.rounds
        self._environ = {**ONE_ENGINE, **dict(assignment.split("=", 1) for assignment in options.env)}
        self._pace = AskingPace(8, 0.2, 2.0) if options.quick else AskingPace(options.flooders)
        chosen = [shape for shape in SHAPES if shape.name in (options.only or shape.name)]
        self._shapes = chosen[:1] if options.quick else chosen
        self._turns: dict[tuple[PromptShape, str], list[FairnessTurn]] = {}
        self._rates: dict[bool, list[float]] = {True: [], False: []}

    def measure(self) -> Report:
        for _ in range(self._rounds):
            with suite(**self._environ):
                self._with_window(FairnessTenants(URL, self._pace))
            with suite(**{**self._environ, **NO_WINDOW}):
                self._without_window(FairnessTenants(URL, self._pace))
        settings: Row = {"rounds": self._rounds, "flooders": self._pace.flooders, **self._environ}
        report = Report(settings=settings)
        for shape in self._shapes:
            self._add(report, shape)
        self._add_rates(report)
        return report

    def _with_window(self, tenants: FairnessTenants) -> None:
        tenants.turn(self._shapes[0], 3, 10.0, None)  # the first steps are slow
        for shape in self._shapes:
            self._note(shape, ALONE, tenants.turn(shape, self._asked, 300.0, None))
            self._note(shape, FAIR, tenants.turn(shape, self._asked, 300.0, FLOODER))
            self._note(shape, SAME, tenants.turn(shape, self._asked, 2 * self._seconds, VICTIM))
        self._rates[True].append(tenants.flood(self._shapes[0], self._seconds))

    def _without_window(self, tenants: FairnessTenants) -> None:
        tenants.turn(self._shapes[0], 3, 10.0, None)
        for shape in self._shapes:
            self._note(shape, OFF, tenants.turn(shape, self._asked, 2 * self._seconds, FLOODER))
        self._rates[False].append(tenants.flood(self._shapes[0], self._seconds))

    def _note(self, shape: PromptShape, condition: str, turn: FairnessTurn) -> None:
        self._turns.setdefault((shape, condition), []).append(turn)

    def _add(self, report: Report, shape: PromptShape) -> None:
        alone = _p95(self._turns[shape, ALONE])
        for condition in (ALONE, FAIR, SAME, OFF):
            turns = self._turns[shape, condition]
            report.rows.append(_row(shape, condition, turns, alone))
            if condition == FAIR:
                report.checks.append(at_most(f"p95 beside a flood, {shape.name}", _p95(turns) / alone, RATIO, "x"))

    def _add_rates(self, report: Report) -> None:
        for has_window, name in ((True, "window"), (False, "no window")):
            report.rows.append({"flood alone": name, **Spread.of(self._rates[has_window]).cells("requests/s")})
        kept = statistics.median(self._rates[True]) / statistics.median(self._rates[False])
        report.checks.append(at_least("rate of the flood with a window", kept, KEPT_RATE, "x"))


def _ttfts_s(turns: Sequence[FairnessTurn]) -> list[float]:
    return [outcome.ttft_s for turn in turns for outcome in turn.victim if outcome.error is None]


def _p95(turns: Sequence[FairnessTurn]) -> float:
    return percentile(_ttfts_s(turns), 95)


def _row(shape: PromptShape, condition: str, turns: Sequence[FairnessTurn], alone_s: float) -> Row:
    ttfts_s = _ttfts_s(turns)
    rounds = [percentile(_ttfts_s([turn]), 95) for turn in turns]
    return {
        "victim beside flooder": shape.name,
        "condition": condition,
        "asked": len(ttfts_s),
        "p50 ms": round(1e3 * percentile(ttfts_s, 50), 1),
        "p95 ms": round(1e3 * _p95(turns), 1),
        "p95 of rounds": " ".join(f"{1e3 * value:.0f}" for value in rounds),
        "x alone": round(_p95(turns) / alone_s, 2),
        "flood requests/s": round(sum(len(turn.flooder) for turn in turns) / sum(turn.seconds for turn in turns), 2),
        "errors": sum(len(turn.errors) for turn in turns),
    }


def measure(options: argparse.Namespace) -> Report:
    return FairnessBenchmark(options).measure()


if __name__ == "__main__":
    raise SystemExit(harness.main("fairness", measure, add_options, description=__doc__))
