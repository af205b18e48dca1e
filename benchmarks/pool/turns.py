"""Contestants in turn: who is there, what each moves in each round, and what that takes of the processor."""

import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.harness import Report
from benchmarks.peers.process import PeerFailed, PeerProcess

KIB, MIB = 1 << 10, 1 << 20
POOL_BYTES = 320 * MIB
ENTRIES = {"48 KiB (SmolLM2)": 48 * KIB, "64 KiB (Gemma 3)": 64 * KIB, "1 MiB": MIB, "4 MiB": 4 * MIB}
OPERATIONS = ("get", "put")
BARE = "bare"
LANES = ("auto", "grpc", "socket", "shared_memory")
PEER_SIZES = {"mooncake": tuple(ENTRIES), "lmcache": ("1 MiB", "4 MiB")}
"""LMCache's server answers a get in two writes and waits for the reader's acknowledgement between them, 40 ms long."""


class PoolMove(NamedTuple):
    """One operation in one round."""

    num_bytes: int
    seconds: float
    server_cpu_s: float
    client_cpu_s: float  # of all clients

    @property
    def gb_per_s(self) -> float:
        return self.num_bytes / self.seconds / 1e9


Moves = dict[tuple[str, str], list[PoolMove]]
"""By contestant and operation, round by round."""


def contestant(name: str, python: str = sys.executable, pool_bytes: int = POOL_BYTES) -> PeerProcess:
    """Start a contestant by the name of its module, ours with a lane: `ours/grpc`."""
    module, _, lane = name.partition("/")
    command = [sys.executable, "-m", "benchmarks.pool.driver", f"benchmarks.pool.{module}", python]
    lanes = {} if lane in ("", "auto") else {"PRFAAS_LANES": lane}
    return PeerProcess(name, command, {"PRFAAS_POOL_BYTES": str(pool_bytes), **lanes})


def started(stack: ExitStack, pythons: Mapping[str, str], report: Report) -> dict[str, PeerProcess]:
    """Start the peers; what does not start is named in the report with the reason, and the others are measured."""
    peers: dict[str, PeerProcess] = {}
    for name, python in pythons.items():
        try:
            peers[name] = stack.enter_context(contestant(name, python))
        except PeerFailed as error:
            report.settings[name] = f"absent: {error}"
    return peers


def taken_in_turn(
    own: Mapping[str, PeerProcess],
    peers: dict[str, PeerProcess],
    size: str,
    moved: int,
    rounds: int,
    clients: int,
    report: Report,
) -> Moves:
    """Return the moves of all of them, or of those left when a peer fails: the report says why it is absent.

    All take part in the same rounds, so a failure begins them anew. A peer that failed once takes no part any more.
    """
    while True:
        others = {name: peer for name, peer in peers.items() if size in PEER_SIZES[name]}
        try:
            return _rounds({**own, **others}, ENTRIES[size], moved, rounds, clients)
        except PeerFailed as error:
            failed = [name for name in others if error.args[0].startswith(name)]
            if not failed:
                raise  # one of our own
            for name in failed:
                report.settings[name] = f"absent at {size}: {error}"
                del peers[name]


def ratio(found: Moves, operation: str, name: str, other: str) -> float:
    """Return the median over rounds of one contestant's rate by another's in the same round."""
    pairs = zip(found[name, operation], found[other, operation], strict=True)
    return statistics.median(mine.gb_per_s / theirs.gb_per_s for mine, theirs in pairs)


def _rounds(peers: Mapping[str, PeerProcess], entry_bytes: int, moved: int, rounds: int, clients: int) -> Moves:
    """Fill the contestants' pools, then have them move the same in turn."""
    found: Moves = {(name, operation): [] for name in peers for operation in OPERATIONS}

    def move(peer: PeerProcess, operation: str, name: str, num_bytes: int) -> PoolMove:
        num_entries = num_bytes // clients // entry_bytes
        answer = peer.request(
            do=operation, entry_bytes=entry_bytes, num_entries=num_entries, name=name, clients=clients
        )
        return PoolMove(answer["bytes"], answer["seconds"], answer["server_cpu_s"], answer["client_cpu_s"])

    for peer in peers.values():
        move(peer, "put", f"fill {clients}", POOL_BYTES)
        for operation in ("put", "get"):
            move(peer, operation, f"warm {clients}", moved)
    for number in range(rounds):
        for name, peer in list(peers.items())[:: 1 if number % 2 else -1]:
            for operation in ("put", "get"):
                found[name, operation].append(move(peer, operation, f"{number} {clients}", moved))
    return found
