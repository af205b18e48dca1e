"""Publish and fetch of one pool over loopback, on each lane, beside a bare `grpc.aio` stream of equal messages.

With `--mooncake PYTHON` and `--lmcache PYTHON` also beside Mooncake Store over TCP and LMCache's server, run by the
interpreters named. The pool is `services.cachepool` with its broker, its client the one of the engines, checksums are
made and verified on the way, which no other contestant does. `--lane` sets PRFAAS_LANES for client and pool. Each
contestant's pool is full before it is measured: memory that is touched for the first time costs all of them more than
the transfer.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from benchmarks import harness
from benchmarks.harness import Check, Report, Row, Spread, at_least, at_most
from benchmarks.peers.process import PeerProcess
from benchmarks.pool.turns import (
    BARE,
    ENTRIES,
    KIB,
    LANES,
    MIB,
    OPERATIONS,
    POOL_BYTES,
    Moves,
    contestant,
    ratio,
    started,
    taken_in_turn,
)

TARGETS = {"grpc": {"get": 0.8, "put": 0.7}, "shared_memory": {"get": 3.0, "put": 3.0}}
"""By lane, against the bare stream. `auto` is shared memory here."""
SOCKET_TARGETS = {48 * KIB: 1.2, 64 * KIB: 1.2, MIB: 2.0, 4 * MIB: 2.0}
CLIENTS = (1, 4)
ROUNDS = 21
LATENCY_LIMIT_MS = 2.0
LATENCY_ROUNDS = 5  # of 30 calls
OVERHEAD_LIMIT = 0.05


def compare(found: Moves, size: str, num_clients: int) -> list[Row]:
    """One row for each contestant and operation; ratios are medians over rounds, each against the same round's bare.

    Processor seconds are totals over all rounds, divided by all that was moved.
    """
    rows: list[Row] = []
    for (name, operation), moves in found.items():
        gigabytes = sum(move.num_bytes for move in moves) / 1e9
        rows.append(
            {
                "entry": size,
                "clients": num_clients,
                "operation": operation,
                "contestant": name,
                **Spread.of([move.gb_per_s for move in moves]).cells("gb_per_s"),
                "of_bare": round(ratio(found, operation, name, BARE), 2),
                "server_s_gb": round(sum(move.server_cpu_s for move in moves) / gigabytes, 2),
                "client_s_gb": round(sum(move.client_cpu_s for move in moves) / gigabytes, 2),
            }
        )
    return rows


def speed_checks(found: Moves, size: str) -> list[Check]:
    """Each lane against the bare stream and against the peers that took part."""
    names = {name for name, _ in found}
    checks: list[Check] = []
    for ours in sorted(name for name in names if name.startswith("ours/")):
        lane = ours.removeprefix("ours/").replace("auto", "shared_memory")
        for operation in OPERATIONS:
            target = SOCKET_TARGETS[ENTRIES[size]] if lane == "socket" else TARGETS[lane][operation]
            value = ratio(found, operation, ours, BARE)
            checks.append(at_least(f"{ours}: {operation} of {size} against the bare stream", value, target))
        checks += [
            at_least(f"{ours}: {operation} of {size} against {peer}", ratio(found, operation, ours, peer), 1.0)
            for peer in ("mooncake", "lmcache")
            if peer in names
            for operation in OPERATIONS
        ]
    return checks


def crowd_checks(alone: Moves, together: Moves, size: str) -> list[Check]:
    """What four clients together keep of one's rate."""

    def median(moves: Moves, name: str, operation: str) -> float:
        return statistics.median(move.gb_per_s for move in moves[name, operation])

    return [
        at_least(
            f"{name}: {operation} of {size}, four clients against one",
            median(together, name, operation) / median(alone, name, operation),
            1.0,
        )
        for name, operation in alone
        if name.startswith("ours/")
    ]


def latencies(own: Mapping[str, PeerProcess]) -> tuple[list[Row], list[Check]]:
    """First verified entry of a 4,096-token prompt; lookup of 2,000 keys, all of them there.

    The bare stream's calls carry one message of that size: what gRPC takes of it.
    """
    chain = {"entry_bytes": 64 * KIB, "num_entries": 64 * 18, "name": "prompt"}
    keys = {"entry_bytes": 4 * KIB, "num_entries": 2000, "name": "keys"}
    rows: list[Row] = []
    checks: list[Check] = []
    for operation, load in (("first_frame", chain), ("lookup", keys)):
        for name, peer in own.items():
            if name != BARE:
                peer.request(do="put", **load)
        rounds = [
            {name: 1000 * peer.request(do=operation, **load)["median_s"] for name, peer in own.items()}
            for _ in range(LATENCY_ROUNDS)
        ]
        for name in own:
            median_ms = statistics.median(found[name] for found in rounds)
            rows.append({"latency": operation, "contestant": name, "median_ms": round(median_ms, 3)})
            if name != BARE:
                checks.append(at_most(f"{name}: {operation}, median", median_ms, LATENCY_LIMIT_MS, "ms"))
    return rows, checks


def overhead(name: str, size: str, num_bytes: int, rounds: int) -> tuple[Row, Check]:
    """Growth of a pool's resident set beyond the payload that it came to hold, behind a first part that warms up.

    The median of as many pools: how many messages lie in a connection's buffers at the worst moment is chance.
    """
    shares = [_grown(name, ENTRIES[size], num_bytes) / num_bytes - 1 for _ in range(rounds)]
    row: Row = {
        "memory": size,
        "contestant": name,
        "stored_mb": round(num_bytes / 1e6),
        **Spread.of(shares).cells("overhead", digits=4),
    }
    return row, at_most(f"{name}: memory beside payload, {size}", statistics.median(shares), OVERHEAD_LIMIT)


def _grown(name: str, entry_bytes: int, num_bytes: int) -> float:
    """Return the growth of a new pool's resident set by this much of payload."""
    load = {"do": "put", "entry_bytes": entry_bytes}
    with contestant(name, pool_bytes=4 * num_bytes) as peer:
        peer.request(**load, num_entries=num_bytes // 2 // entry_bytes, name="first")
        before = peer.request(do="resident_bytes")["bytes"]
        stored: int = peer.request(**load, num_entries=num_bytes // entry_bytes, name="second")["bytes"]
        grown: int = peer.request(do="resident_bytes")["bytes"] - before
    return grown * num_bytes / stored


def measure(options: argparse.Namespace) -> Report:
    names = [f"ours/{lane}" for lane in options.lane or ["auto"]]
    sizes = options.size or (("48 KiB (SmolLM2)", "1 MiB") if options.quick else list(ENTRIES))
    moved, rounds = (64 * MIB, 3) if options.quick else (128 * MIB, options.rounds)
    report = Report(settings={"pool_mib": POOL_BYTES // MIB, "rounds": rounds})
    with ExitStack() as stack:
        own = {name: stack.enter_context(contestant(name)) for name in (BARE, *names)}
        others = {"mooncake": options.mooncake, "lmcache": options.lmcache}
        peers = started(stack, {name: python for name, python in others.items() if python}, report)
        for size in sizes:
            alone, *crowds = (
                taken_in_turn(own, peers, size, moved, rounds, clients, report)
                for clients in (CLIENTS if size == "1 MiB" or not options.quick else CLIENTS[:1])
            )
            report.rows += compare(alone, size, 1)
            report.checks += speed_checks(alone, size)
            for crowd in crowds:
                report.rows += compare(crowd, size, CLIENTS[1])
                report.checks += crowd_checks(alone, crowd, size)
        rows, checks = latencies(own)
        report.rows += rows
        report.checks += checks
    if "memory" not in options.skip:
        _add_overheads(report, names, quick=options.quick)
    return report


def _add_overheads(report: Report, names: list[str], *, quick: bool) -> None:
    for size in ("1 MiB",) if quick else ("48 KiB (SmolLM2)", "64 KiB (Gemma 3)", "1 MiB"):
        for name in names:
            row, check = overhead(name, size, *((128 * MIB, 1) if quick else (1024 * MIB, 3)))
            report.rows.append(row)
            report.checks.append(check)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mooncake", metavar="PYTHON", help="an interpreter that has mooncake-transfer-engine")
    parser.add_argument("--lmcache", metavar="PYTHON", help="an interpreter that has lmcache")
    parser.add_argument("--lane", action="append", choices=LANES, help="may be repeated; default: auto")
    parser.add_argument("--size", action="append", choices=list(ENTRIES), help="may be repeated; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--skip", action="append", choices=("memory",), default=[], help="leave a section out")


if __name__ == "__main__":
    sys.exit(harness.main("pool", measure, add_options, description=__doc__))
