"""From turns to rows and targets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.harness import Check, Report, Row, at_least, at_most
from benchmarks.serve import percentile
from benchmarks.serving.contestants import ONE_BOX
from benchmarks.serving.conversations import AnsweredTurn, cached_share
from benchmarks.serving.turns import ServingTurn

Turns = Sequence[ServingTurn]


def report(turns: Mapping[str, Turns]) -> Report:
    """Return each server's figures and costs, and our single box beside each of the others."""
    found = Report()
    for name, several in turns.items():
        found.rows += _rows(name, several)
    for name, several in turns.items():
        found.checks.append(at_most(f"{name}: requests that failed", sum(turn.held.num_failed for turn in several), 0))
        if name != ONE_BOX and ONE_BOX in turns:
            found.checks += _compared(name, turns[ONE_BOX], several)
    return found


def rate(turn: ServingTurn) -> float:
    """Return output tokens a second, of all users together."""
    return sum(request.output_tokens for request in turn.held.requests) / turn.held.seconds


def ttft_ms(turns: Turns, percent: float) -> float:
    """Return a percentile of all rounds' requests."""
    return percentile([request.ttft_ms for request in _requests(turns)], percent)


def _compared(name: str, ours: Turns, theirs: Turns) -> list[Check]:
    if not _requests(ours) or not _requests(theirs):
        return []
    faster = median(map(rate, ours)) / median(map(rate, theirs))
    return [
        at_least(f"{ONE_BOX}: tokens/s, times those of {name}", faster, 1.0),
        at_most(f"{ONE_BOX}: TTFT p50, times that of {name}", ttft_ms(ours, 50) / ttft_ms(theirs, 50), 1.0),
        at_most(f"{ONE_BOX}: TTFT p99, times that of {name}", ttft_ms(ours, 99) / ttft_ms(theirs, 99), 1.0),
    ]


def _requests(turns: Turns) -> list[AnsweredTurn]:
    return [request for turn in turns for request in turn.held.requests]


def _rows(name: str, turns: Turns) -> list[Row]:
    requests = _requests(turns)
    speed: Row = {"server": name, "requests": len(requests), "failed": sum(turn.held.num_failed for turn in turns)}
    if not requests:
        return [speed]
    itls = [request.itl_ms for request in requests if request.itl_ms is not None]
    speed |= {
        "ttft_p50_ms": round(ttft_ms(turns, 50), 1),
        "ttft_p99_ms": round(ttft_ms(turns, 99), 1),
        "itl_p50_ms": round(percentile(itls, 50), 1) if itls else None,
        "itl_p99_ms": round(percentile(itls, 99), 1) if itls else None,
        "tokens_per_s": round(median(map(rate, turns)), 1),
        "cached_share": _rounded(cached_share(requests)),
    }
    return [speed, *_by_turn(name, requests), *_costs(name, turns)]


def _by_turn(name: str, requests: Sequence[AnsweredTurn]) -> list[Row]:
    """Return what becomes of a conversation as it grows."""
    rows: list[Row] = []
    for turn in sorted({request.turn for request in requests}):
        of_turn = [request for request in requests if request.turn == turn]
        rows.append(
            {
                "server": name,
                "turn": turn + 1,
                "prompt_tokens": round(median(request.prompt_tokens for request in of_turn)),
                "turn_ttft_p50_ms": round(median(request.ttft_ms for request in of_turn), 1),
                "turn_cached_share": _rounded(cached_share(of_turn)),
            }
        )
    return rows


def _costs(name: str, turns: Turns) -> list[Row]:
    seconds = sum(turn.held.seconds for turn in turns)
    cpu = sum((turn.cpu_s for turn in turns), Counter[str]())
    cost: Row = {
        "server": name,
        "per_s_low": round(min(map(rate, turns)), 1),
        "per_s_high": round(max(map(rate, turns)), 1),
        "seconds": round(seconds, 1),
        "server_cores": round(cpu.total() / seconds, 2),
        "client_cores": round(sum(turn.client_cpu_s for turn in turns) / seconds, 2),
        "foreign_cores": round(sum(turn.foreign_cpu_s for turn in turns) / seconds, 2),
        "rss_mb": turns[-1].memory_mb.total(),
    }
    processes: list[Row] = [
        {"server": name, "process": process, "cpu_s": round(used, 2), "process_rss_mb": turns[-1].memory_mb[process]}
        for process, used in cpu.most_common()
    ]
    return [cost, *processes]


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)
