"""Mooncake Store over TCP: on one side a master and a client that lends its memory, on the other clients.

Runs in an interpreter that has `mooncake-transfer-engine`; knows nothing of ours but the lines and the load.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.pool.lines import open_answers, serve
from benchmarks.pool.load import Payloads, PoolLoad

SEGMENT_BYTES = 1 << 30
BUFFER_BYTES = 256 << 20
LEASE_MS = 200
"""How long a read keeps an object from removal; a round takes longer."""
_HAS_LEASE = -706  # Mooncake's error codes


def connect(master: str, segment_bytes: int) -> Any:
    """Return a store that lends `segment_bytes` to all. Raises `RuntimeError`."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    result = store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, BUFFER_BYTES, "tcp", "", master)
    if result != 0:
        raise RuntimeError(f"Mooncake's setup returned {result}")
    return store


def run_server() -> None:
    answers = open_answers()
    ports = [_free_port() for _ in range(2)]
    program = str(Path(sys.executable).parent / "mooncake_master")
    master = subprocess.Popen(
        [program, f"-rpc_port={ports[0]}", f"-metrics_port={ports[1]}", f"-default_kv_lease_ttl={LEASE_MS}"], stdout=2
    )
    try:
        address = f"127.0.0.1:{ports[0]}"
        _wait_for(ports[0])
        store = connect(address, SEGMENT_BYTES)
        print(json.dumps({"ready": {"address": address, "pid": os.getpid()}}), file=answers)
        sys.stdin.read()
        store.close()
    finally:
        master.terminate()
        master.wait(10)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("Mooncake's master did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MooncakeClient:
    def __init__(self, address: str) -> None:
        self._store = connect(address, 0)
        self._payloads = Payloads()
        self._keys: list[str] = []  # of what earlier puts have left

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        load = PoolLoad.of(command)
        payloads = self._payloads.of(load.entry_bytes)
        work = {"put": self._put, "get": self._get}[command["do"]]
        if command["do"] == "put":
            self._make_room()
        started = time.monotonic()
        for number in range(load.num_entries):
            work(f"{load.name}-{load.entry_bytes}-{number}", payloads[number % len(payloads)])
        return {"started": started, "ended": time.monotonic(), "bytes": load.num_entries * load.entry_bytes}

    def _make_room(self) -> None:
        """Remove what was put before; what was read a moment ago stays till the next time.

        A segment that is nearly full evicts what was put last as well, and its reader would find nothing.
        """
        self._keys = [key for key in self._keys if self._store.remove(key) == _HAS_LEASE]

    def _put(self, key: str, payload: bytes) -> None:
        if (result := self._store.put(key, payload)) != 0:
            raise RuntimeError(f"put returned {result}")
        self._keys.append(key)

    def _get(self, key: str, payload: bytes) -> None:
        if len(self._store.get(key)) != len(payload):
            raise RuntimeError(f"{key} did not come")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        run_server()
    else:
        serve({}, MooncakeClient(sys.argv[3]).do)
