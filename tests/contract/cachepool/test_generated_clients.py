"""The pool to those who know only its proto file: generated clients, and bytes that are no message at all."""

from typing import Any

import pytest

from shared.errors import CorruptFrame
from shared.kv.frame import Frame
from shared.pool.wire import encode_publish
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import entries_to_messages, frame_from_message, layout_to_message
from tests.support.pools import CHAIN, Running, frames_of, lying_in_bytes, opening, publish, raw_publish, sending, soon
from tests.support.samples import ALL, LAYOUT, wanting

LANES = ("grpc",)


async def fetched(west: Running) -> list[Frame]:
    request = pb.FetchRequest(layout=layout_to_message(LAYOUT), blocks=entries_to_messages(wanting(CHAIN)), wait_ms=100)
    replies = [reply async for reply in west.stub.Fetch(request)]
    return [frame_from_message(message) for reply in replies for message in reply.frames.frames]


async def test_a_generated_writer_and_a_generated_reader(west: Running) -> None:
    call = await raw_publish(west, opening(CHAIN), sending(frames_of(CHAIN)))
    await call.done_writing()
    assert (await call.read()).grant.granted == [bytes([ALL])] * len(CHAIN)
    assert (await call.read()).stored.num_entries == 12
    assert await fetched(west) == frames_of(CHAIN)


async def test_our_writer_and_a_generated_reader(west: Running) -> None:
    await publish(west, CHAIN)
    assert await fetched(west) == frames_of(CHAIN)


@pytest.mark.parametrize("data", [b"\xff", b"\x12\x05ab", encode_publish(frames_of(CHAIN))[:-1]])
async def test_bytes_that_are_no_message_end_the_stream_with_a_reason(
    west: Running, channels: Channels, data: bytes
) -> None:
    raw: Any = channels.get(west.address).stream_stream("/prfaas.v1.CachePool/Publish")
    call = raw()
    await call.write(data)
    with pytest.raises(CorruptFrame, match="no PublishRequest"), rpc_errors("west"):
        await call.read()
    assert west.count("corrupt_frames_total", source="writer") == 1
    assert west.idle


async def test_a_reply_that_is_no_message_is_a_corrupt_frame(channels: Channels) -> None:
    async with lying_in_bytes(channels, b"\x0a\x05ab") as client:
        with pytest.raises(CorruptFrame, match="no FetchReply"):
            async for _ in client.fetch(LAYOUT, wanting(CHAIN), (), 0.1, soon()):
                pass
