"""Corrupt frames and bad requests: refused, counted, and nothing is left of them."""

from typing import Any

import pytest

from shared.errors import BadRequest, CorruptFrame
from shared.kv.layout import KvLayout, LayerSpec
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import entries_to_messages, layout_to_message
from tests.support.pools import (
    CHAIN,
    Fetching,
    Running,
    batch_of,
    entries,
    frames_of,
    opening,
    publish,
    raw_publish,
    sending,
    serving,
    soon,
)
from tests.support.samples import ENTRY_BYTES, LAYOUT, frame, key, wanting
from tests.support.waiting import until


async def test_a_corrupt_frame_ends_the_writer_and_frees_its_grants(west: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN[:1]))
    good, *rest = frames_of(CHAIN[:1])
    bad = rest[0]._replace(payload=bytes(ENTRY_BYTES))
    call = await raw_publish(west, opening(CHAIN[:1]), sending([good, bad]))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    with pytest.raises(CorruptFrame), rpc_errors("west"):
        await call.read()
    await until(lambda: west.count("writers_open") == 0)
    assert west.count("corrupt_frames_total", source="writer") == 1
    assert west.count("stored_entries") == 1
    async with west.client.publish(soon()) as publication:
        assert (await publication.open(LAYOUT, wanting(CHAIN[:1]))).granted == [0b110]
        await publication.send(rest)
    assert sorted((await fetching.done()).got) == entries(CHAIN[:1])


@pytest.mark.parametrize(
    "damage",
    [{"codec": 9}, {"fidelity": 0}, {"layer": 1 << 31}, {"key": b"short"}, {"raw_bytes": 0}, {"checksum": 1}],
    ids=lambda damage: next(iter(damage)),
)
async def test_a_frame_that_cannot_be_one_is_corrupt(west: Running, damage: dict[str, Any]) -> None:
    message = batch_of(frame(CHAIN[0], 0)).frames[0]
    for name, value in damage.items():
        setattr(message, name, value)
    call = await raw_publish(west, opening(CHAIN[:1]), pb.PublishRequest(frames=pb.FrameBatch(frames=[message])))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    with pytest.raises(CorruptFrame), rpc_errors("west"):
        await call.read()
    assert west.count("corrupt_frames_total", source="writer") == 1
    assert west.idle


BAD_LAYOUTS = [
    pb.Layout(),
    pb.Layout(layers=[pb.Layer(num_kv_heads=1, head_dim=4)], dtype="int3", block_tokens=4),
    pb.Layout(layers=[pb.Layer(num_kv_heads=1, head_dim=4)], dtype="bfloat16", block_tokens=0),
    pb.Layout(layers=[pb.Layer(num_kv_heads=0, head_dim=4)], dtype="bfloat16", block_tokens=4),
]
GOOD_LAYOUT = layout_to_message(LAYOUT)
BAD_BLOCKS = [
    [pb.BlockEntries(key=b"x" * 31, layers=b"\x01")],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x08")],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x01" * 65)],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x01")] * 2,
    [pb.BlockEntries(key=key(n), layers=b"\x01") for n in range(11)],
]
BAD_REQUESTS: list[tuple[pb.Layout, list[pb.BlockEntries]]] = [(layout, []) for layout in BAD_LAYOUTS] + [
    (GOOD_LAYOUT, blocks) for blocks in BAD_BLOCKS
]


@pytest.mark.parametrize(("layout", "blocks"), BAD_REQUESTS)
async def test_bad_requests_are_refused_and_leave_nothing(
    channels: Channels, layout: pb.Layout, blocks: list[pb.BlockEntries]
) -> None:
    async with serving(channels, max_blocks=10) as west:
        with pytest.raises(BadRequest), rpc_errors("west"):
            await west.stub.Fetch(pb.FetchRequest(layout=layout, blocks=blocks)).read()
        call = await raw_publish(west, pb.PublishRequest(open=pb.PublishOpen(layout=layout, blocks=blocks)))
        with pytest.raises(BadRequest), rpc_errors("west"):
            await call.read()
        await publish(west, CHAIN)


async def test_other_bad_messages_are_refused(west: Running) -> None:
    blocks = entries_to_messages(wanting(CHAIN))
    for source in (
        pb.Source(first=0, end=5, nodes=["127.0.0.1:1"]),
        pb.Source(first=2, end=2, nodes=["127.0.0.1:1"]),
        pb.Source(first=0, end=1),
    ):
        request = pb.FetchRequest(layout=GOOD_LAYOUT, blocks=blocks, sources=[source])
        with pytest.raises(BadRequest), rpc_errors("west"):
            await west.stub.Fetch(request).read()
    call = await raw_publish(west, pb.PublishRequest())
    with pytest.raises(BadRequest), rpc_errors("west"):
        await call.read()
    with pytest.raises(BadRequest), rpc_errors("west"):
        await west.stub.Lookup(pb.LookupRequest(keys=[b"short"]))
    await publish(west, CHAIN)
    other = KvLayout((LayerSpec(None, 1, 8),), "float32", block_tokens=4)
    call = await raw_publish(west, opening(CHAIN, layout=other))
    with pytest.raises(BadRequest), rpc_errors("west"):
        await call.read()
