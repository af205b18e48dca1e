"""The canned workers and the closed loop of the gateway's benchmark, against real clients and servers."""

import json
import os
from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import pytest

from benchmarks.gateway.contestants import WORKER_ALONE, contestants
from benchmarks.gateway.http2 import encoded, frames_in
from benchmarks.gateway.load import Address, Refused, drive
from benchmarks.gateway.processes import ChildProcess, SplitCores, child, file_of
from benchmarks.gateway.throughput import GatewayLoad, Throughput
from benchmarks.gateway.work import completion, ids
from benchmarks.harness import ROOT
from shared.model.files.catalog import DEFAULT_MODEL
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeStub, PrefillStub
from shared.rpc.options import client_options

HOST = "127.0.0.1"


@pytest.fixture
async def workers() -> AsyncIterator[ChildProcess]:
    async with child(ROOT, file_of("instant.py"), "0.001") as running:
        yield running


def test_frames_are_taken_whole() -> None:
    sent = encoded(0, 1, 5, b"abc") + encoded(1, 4, 7)
    buffer = bytearray(sent[:-1])
    assert [tuple(frame) for frame in frames_in(buffer)] == [(0, 1, 5, b"abc")]
    buffer += sent[-1:]
    assert [tuple(frame) for frame in frames_in(buffer)] == [(1, 4, 7, b"")]
    assert not buffer


async def test_instant_workers_speak_grpc(workers: ChildProcess) -> None:
    decode, prefill, _ = json.loads(workers.said)
    start = pb.GenerateRequest(sampling=pb.Sampling(max_tokens=40), token_ids=range(70), num_blocks=1)
    async with grpc.aio.insecure_channel(f"{HOST}:{decode}", options=client_options()) as channel:
        for _ in range(3):
            told = [message async for message in DecodeStub(channel).Generate(iter([pb.Control(start=start)]))]
            assert [len(message.ids) for message in told] == [1] * 40
            assert told[0].computed_prompt_tokens == 6
            assert told[-1].finish_reason == pb.FINISH_REASON_LENGTH
    async with grpc.aio.insecure_channel(f"{HOST}:{prefill}", options=client_options()) as channel:
        large = pb.PrefillRequest(token_ids=range(50_000), num_blocks=3)
        assert [m.num_blocks_done async for m in PrefillStub(channel).Prefill(large)] == [3]


async def test_the_client_counts_events_of_streams(workers: ChildProcess) -> None:
    address = Address(HOST, json.loads(workers.said)[2])
    bodies = [json.dumps(completion("Hi", max_tokens=20, stream=True)).encode() for _ in range(6)]
    seen = await drive(address, bodies, 3)
    assert len(seen.latencies_s) == 6
    assert seen.num_events == 6 * 21  # and the end
    assert 0 < seen.latency_ms(0.5) <= seen.latency_ms(0.99)


@pytest.mark.slow
async def test_a_gateway_under_load_beside_the_worker_alone() -> None:
    def body(number: int, **more: object) -> dict[str, object]:
        return completion(ids(number, 100), **more)

    short = GatewayLoad("short", body, 20, width=4)
    streams = GatewayLoad("streams", partial(body, max_tokens=9, stream=True), 8, width=4, tokens_out=9)
    every = os.sched_getaffinity(0)
    async with contestants(SplitCores(every, every), {"here": ROOT}, {}, DEFAULT_MODEL, 0.001) as found:
        load = Throughput(found)
        measured = await load.rounds([short, streams], 1)
        with pytest.raises(Refused, match="prompt"):
            await drive(found["here"].address, [b'{"prompt": []}'], 1)
        memory = await load.memory("here", 10)
    assert [set(rounds) for rounds in measured.values()] == [{"here", WORKER_ALONE}] * 2
    for load_name, unit in (("short", "requests/s"), ("streams", "tokens/s")):
        row = measured[load_name]["here"].row("here")
        assert float(str(row[unit])) > 0
        assert float(str(row["CPU ms each"])) > 0
    assert int(str(memory["after 100"])) > 0
