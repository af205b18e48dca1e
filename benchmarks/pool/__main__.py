"""Publish and fetch of one pool over loopback, beside a bare `grpc.aio` stream of equal messages.

With `--mooncake PYTHON` and `--lmcache PYTHON` also beside Mooncake Store over TCP and LMCache's server, run by the
interpreters named, at 1 and 4 MiB. The pool is `services.cachepool` with its broker, its client the one of the engines,
checksums are made and verified on the way, which no contestant does. Each contestant's pool is full before it is
measured: memory that is touched for the first time costs all of them more than the transfer.
"""

import argparse
import statistics
import sys
from contextlib import ExitStack

from benchmarks import harness
from benchmarks.harness import Check, Report, Row, Spread, at_least, at_most
from benchmarks.peers.process import PeerFailed, PeerProcess

KIB, MIB = 1 << 10, 1 << 20
POOL_BYTES = 320 * MIB
ENTRIES = {"48 KiB (SmolLM2)": 48 * KIB, "64 KiB (Gemma 3)": 64 * KIB, "1 MiB": MIB, "4 MiB": 4 * MIB}
TARGETS = {"get": 0.8, "put": 0.7}
PEER_SIZES = ("1 MiB", "4 MiB")
LATENCY_LIMIT_MS = 2.0
LATENCY_ROUNDS = 5  # of 30 calls
OVERHEAD_LIMIT = 0.05


def contestant(name: str, python: str = sys.executable, pool_bytes: int = POOL_BYTES) -> PeerProcess:
    command = [sys.executable, "-m", "benchmarks.pool.driver", f"benchmarks.pool.{name}", python]
    return PeerProcess(name, command, {"PRFAAS_POOL_BYTES": str(pool_bytes)})


def rates(
    peers: dict[str, PeerProcess], size: str, moved: int, rounds: int, clients: int = 1
) -> dict[str, list[float]]:
    """Return GB/s by "contestant operation", round by round, contestants in turn; their pools are filled before."""
    found: dict[str, list[float]] = {f"{name} {operation}": [] for name in peers for operation in TARGETS}
    entry_bytes = ENTRIES[size]

    def move(peer: PeerProcess, operation: str, name: str, num_bytes: int) -> float:
        num_entries = num_bytes // clients // entry_bytes
        answer = peer.request(
            do=operation, entry_bytes=entry_bytes, num_entries=num_entries, name=name, clients=clients
        )
        return float(answer["bytes"] / answer["seconds"] / 1e9)

    for peer in peers.values():
        move(peer, "put", f"fill {clients}", POOL_BYTES)
        for operation in ("put", "get"):
            move(peer, operation, f"warm {clients}", moved)
    for number in range(rounds):
        for name, peer in peers.items() if number % 2 else reversed(peers.items()):
            for operation in ("put", "get"):
                found[f"{name} {operation}"].append(move(peer, operation, f"{number} {clients}", moved))
    return found


def started(stack: ExitStack, pythons: dict[str, str], report: Report) -> dict[str, PeerProcess]:
    """Start the peers; what does not start is named in the report with the reason, and the others are measured."""
    peers: dict[str, PeerProcess] = {}
    for name, python in pythons.items():
        try:
            peers[name] = stack.enter_context(contestant(name, python))
        except PeerFailed as error:
            report.settings[name] = f"absent: {error}"
    return peers


def with_peers(
    own: dict[str, PeerProcess], peers: dict[str, PeerProcess], size: str, moved: int, rounds: int, report: Report
) -> dict[str, list[float]]:
    """Return `rates` of all of them, or of those left when a peer fails: the report says why it is absent.

    All take part in the same rounds, so a failure begins them anew. A peer that failed once takes no part any more.
    """
    while True:
        try:
            return rates({**own, **peers}, size, moved, rounds)
        except PeerFailed as error:
            failed = [name for name in peers if error.args[0].startswith(name)]
            if not failed:
                raise  # one of our own
            for name in failed:
                report.settings[name] = f"absent at {size}: {error}"
                del peers[name]


def compare(found: dict[str, list[float]], size: str, num_clients: int) -> list[Row]:
    """One row for each contestant and operation; ratios are medians over rounds, each against the same round's bare."""
    rows: list[Row] = []
    for key, values in found.items():
        name, operation = key.split()
        ratios = [ours / bare for ours, bare in zip(values, found[f"bare {operation}"], strict=True)]
        rows.append(
            {
                "entry": size,
                "clients": num_clients,
                "operation": operation,
                "contestant": name,
                **Spread.of(values).cells("gb_per_s"),
                "of_bare": round(statistics.median(ratios), 2),
            }
        )
    return rows


def speed_checks(found: dict[str, list[float]], size: str) -> list[Check]:
    def ratio(operation: str, other: str) -> float:
        pairs = zip(found[f"ours {operation}"], found[f"{other} {operation}"], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    checks = [at_least(f"{op} of {size} against the bare stream", ratio(op, "bare"), to) for op, to in TARGETS.items()]
    if "mooncake get" in found:
        checks += [at_least(f"{op} of {size} against Mooncake", ratio(op, "mooncake"), 1.0) for op in TARGETS]
    return checks


def crowd_checks(alone: dict[str, list[float]], together: dict[str, list[float]]) -> list[Check]:
    """What four clients together keep of one's rate."""
    return [
        at_least(
            f"{operation} of four clients against one",
            statistics.median(together[f"ours {operation}"]) / statistics.median(alone[f"ours {operation}"]),
            1.0,
        )
        for operation in TARGETS
    ]


def latencies(ours: PeerProcess, bare: PeerProcess) -> tuple[list[Row], list[Check]]:
    """First verified entry of a 4,096-token prompt; lookup of 2,000 keys, all of them there.

    Beside them calls of the bare stream that carry one message of that size: what gRPC takes of it.
    """
    chain = {"entry_bytes": 64 * KIB, "num_entries": 64 * 18, "name": "prompt"}
    keys = {"entry_bytes": 4 * KIB, "num_entries": 2000, "name": "keys"}
    rows: list[Row] = []
    checks: list[Check] = []
    for operation, load in (("first_frame", chain), ("lookup", keys)):
        ours.request(do="put", **load)
        taken = {"median_ms": ours, "bare_ms": bare}
        rounds = [
            {name: 1000 * peer.request(do=operation, **load)["median_s"] for name, peer in taken.items()}
            for _ in range(LATENCY_ROUNDS)
        ]
        medians = {name: statistics.median(found[name] for found in rounds) for name in taken}
        rows.append({"latency": operation, **{name: round(ms, 3) for name, ms in medians.items()}})
        checks.append(at_most(f"{operation}, median", medians["median_ms"], LATENCY_LIMIT_MS, "ms"))
    return rows, checks


def overhead(size: str, num_bytes: int, rounds: int) -> tuple[Row, Check]:
    """Growth of a pool's resident set beyond the payload that it came to hold, behind a first part that warms up.

    The median of as many pools: how many messages lie in a connection's buffers at the worst moment is chance.
    """
    shares = [_grown(ENTRIES[size], num_bytes) / num_bytes - 1 for _ in range(rounds)]
    row: Row = {"memory": size, "stored_mb": round(num_bytes / 1e6), **Spread.of(shares).cells("overhead", digits=4)}
    return row, at_most(f"memory beside payload, {size}", statistics.median(shares), OVERHEAD_LIMIT)


def _grown(entry_bytes: int, num_bytes: int) -> float:
    """Return the growth of a new pool's resident set by this much of payload."""
    load = {"do": "put", "entry_bytes": entry_bytes}
    with contestant("ours", pool_bytes=4 * num_bytes) as peer:
        peer.request(**load, num_entries=num_bytes // 2 // entry_bytes, name="first")
        before = peer.request(do="resident_bytes")["bytes"]
        stored: int = peer.request(**load, num_entries=num_bytes // entry_bytes, name="second")["bytes"]
        grown: int = peer.request(do="resident_bytes")["bytes"] - before
    return grown * num_bytes / stored


def measure(options: argparse.Namespace) -> Report:
    report = Report(settings={"pool_mib": POOL_BYTES // MIB})
    moved, rounds = (64 * MIB, 3) if options.quick else (128 * MIB, 21)
    with ExitStack() as stack:
        own = {name: stack.enter_context(contestant(name)) for name in ("bare", "ours")}
        others = {"mooncake": options.mooncake, "lmcache": options.lmcache}
        peers = started(stack, {name: python for name, python in others.items() if python}, report)
        for size in ("48 KiB (SmolLM2)", "1 MiB") if options.quick else ENTRIES:
            found = with_peers(own, peers if size in PEER_SIZES else {}, size, moved, rounds, report)
            report.rows += compare(found, size, 1)
            report.checks += speed_checks(found, size)
            if size == "1 MiB":
                four = rates(own, size, moved, rounds, clients=4)
                report.rows += compare(four, size, 4)
                report.checks += crowd_checks(found, four)
        rows, checks = latencies(own["ours"], own["bare"])
        report.rows += rows
        report.checks += checks
    for size in ("1 MiB",) if options.quick else ("48 KiB (SmolLM2)", "64 KiB (Gemma 3)", "1 MiB"):
        row, check = overhead(size, *((128 * MIB, 1) if options.quick else (1024 * MIB, 3)))
        report.rows.append(row)
        report.checks.append(check)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mooncake", metavar="PYTHON", help="an interpreter that has mooncake-transfer-engine")
    parser.add_argument("--lmcache", metavar="PYTHON", help="an interpreter that has lmcache")


if __name__ == "__main__":
    sys.exit(harness.main("pool", measure, add_options, description=__doc__))
