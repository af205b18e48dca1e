"""LMCache's own server, asked over its socket protocol. Runs in an interpreter that has `lmcache`."""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from benchmarks.pool.lines import open_answers, serve
from benchmarks.pool.load import Payloads, PoolLoad


def run_server() -> None:
    answers = open_answers()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lmcache.v1.server", "127.0.0.1", str(port)]
    server = subprocess.Popen(command, stdout=2, env={**os.environ, "LMCACHE_TRACK_USAGE": "false"})
    try:
        _connect(port, limit_s=60).close()
        print(json.dumps({"ready": {"address": f"127.0.0.1:{port}", "pid": server.pid}}), file=answers)
        sys.stdin.read()
    finally:
        server.terminate()
        server.wait(10)


def _connect(port: int, limit_s: float) -> socket.socket:
    end = time.monotonic() + limit_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


class LmcacheClient:
    def __init__(self, address: str) -> None:
        import torch
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.protocol import ClientCommand, ClientMetaMessage, ServerMetaMessage

        self._torch, self._key = torch, CacheEngineKey
        self._format, self._commands = MemoryFormat(1), ClientCommand
        self._request, self._reply = ClientMetaMessage, ServerMetaMessage
        self._socket = _connect(int(address.split(":")[1]), limit_s=10)
        self._payloads = Payloads()

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        load = PoolLoad.of(command)
        payloads = self._payloads.of(load.entry_bytes)
        target = memoryview(bytearray(load.entry_bytes))
        keys = [
            self._key("m", 1, 0, hash((load.name, load.entry_bytes, n)), self._torch.float16)
            for n in range(load.num_entries)
        ]
        started = time.monotonic()
        if command["do"] == "put":
            for number, key in enumerate(keys):
                self._ask(self._commands.PUT, key, load.entry_bytes)
                self._socket.sendall(payloads[number % len(payloads)])
            self._ask(self._commands.EXIST, keys[-1], 0)  # a put has no answer; this one comes after the last of them
            self._answer()
        else:
            for key in keys:
                self._ask(self._commands.GET, key, 0)
                if self._answer().length != load.entry_bytes:
                    raise RuntimeError("an entry did not come")
                self._receive(target)
        return {"started": started, "ended": time.monotonic(), "bytes": load.num_entries * load.entry_bytes}

    def _ask(self, command: Any, key: Any, length: int) -> None:
        shape = self._torch.Size([length, 0, 0, 0])
        self._socket.sendall(self._request(command, key, length, self._format, self._torch.float16, shape).serialize())

    def _answer(self) -> Any:
        header = memoryview(bytearray(self._reply.packlength()))
        self._receive(header)
        return self._reply.deserialize(bytes(header))

    def _receive(self, target: memoryview) -> None:
        while target:
            count = self._socket.recv_into(target)
            if not count:
                raise RuntimeError("LMCache's server closed the connection")
            target = target[count:]


if __name__ == "__main__":
    if sys.argv[1] == "server":
        run_server()
    else:
        serve({}, LmcacheClient(sys.argv[3]).do)
