"""The bare stream: `grpc.aio` with the suite's own channel options, bytes in, bytes out, messages made beforehand."""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import grpc
import grpc.aio

from benchmarks.pool.lines import open_answers, serve
from benchmarks.pool.load import Payloads, PoolLoad
from shared.allocator import keep_freed_memory
from shared.interpreter import take_turns_often
from shared.rpc.options import client_options, server_options

SERVICE = "benchmarks.Bare"
LOOKUP_BYTES = 2000 * 34
"""2,000 keys of 32 bytes, as protobuf writes them."""


async def run_server() -> None:
    payloads = Payloads()

    async def down(request: bytes, context: Any) -> None:
        num_bytes, count = json.loads(request)
        messages = payloads.of(num_bytes)
        for number in range(count):
            await context.write(messages[number % len(messages)])

    async def up(requests: AsyncIterator[bytes], _context: Any) -> bytes:
        size = 0
        async for message in requests:
            size += len(message)
        return json.dumps(size).encode()

    server = grpc.aio.server(options=server_options())
    handlers: dict[str, Any] = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"ready": {"address": f"127.0.0.1:{port}", "pid": os.getpid()}}), file=open_answers())
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


class BareClient:
    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        self._payloads = Payloads()
        self._runner.run(self._connect(address))

    async def _connect(self, address: str) -> None:
        channel = grpc.aio.insecure_channel(address, options=client_options())
        self._down: Any = channel.unary_stream(f"/{SERVICE}/Down")
        self._up: Any = channel.stream_unary(f"/{SERVICE}/Up")

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        load = PoolLoad.of(command)
        num_bytes = load.entry_bytes * load.entries_per_message
        count = -(-load.num_entries // load.entries_per_message)
        latency = {
            "first_frame": partial(self._get, load.entry_bytes, 1),
            "lookup": partial(self._put, LOOKUP_BYTES, 1),
        }
        if (call := latency.get(command["do"])) is not None:
            return self._runner.run(self._seconds(call))
        work = {"put": self._put, "get": self._get}[command["do"]]
        started = time.monotonic()
        self._runner.run(work(num_bytes, count))
        return {"started": started, "ended": time.monotonic(), "bytes": num_bytes * count}

    async def _seconds(self, call: Callable[[], Coroutine[Any, Any, None]]) -> dict[str, Any]:
        """A call that carries one message of the size that the pool's carries, and does nothing else."""
        started, seconds = time.monotonic(), []
        for _ in range(30):
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)
        return {"started": started, "ended": time.monotonic(), "bytes": 0, "median_s": statistics.median(seconds)}

    async def _put(self, num_bytes: int, count: int) -> None:
        messages = self._payloads.of(num_bytes)
        call = self._up()
        for number in range(count):
            await call.write(messages[number % len(messages)])
        await call.done_writing()
        assert json.loads(await call) == num_bytes * count

    async def _get(self, num_bytes: int, count: int) -> None:
        size = 0
        async for message in self._down(json.dumps([num_bytes, count]).encode()):
            size += len(message)
        assert size == num_bytes * count


if __name__ == "__main__":
    keep_freed_memory()
    take_turns_often()
    if sys.argv[1] == "server":
        asyncio.run(run_server())
    else:
        serve({}, BareClient(sys.argv[3]).do)
