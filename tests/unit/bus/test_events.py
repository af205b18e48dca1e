"""Events survive the wire, and what is no event is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.events import (
    EVENT_VERSION,
    TOPIC_LOAD,
    TOPIC_MEMBERSHIP,
    TOPIC_PLACEMENT,
    LinkLoad,
    LoadEvent,
    MembershipEvent,
    PlacementEvent,
    StoredBlocks,
    decode_event,
    unpack_keys,
)
from shared.errors import BadEvent
from shared.ids import BlockKey, Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.step_profile import StepProfile

KEY = BlockKey(bytes(range(32)))
PLACEMENT = PlacementEvent(
    holder=WorkerId("cachepool-east"),
    dc=Datacenter("east"),
    epoch=Epoch(1_790_000_000_000),
    sequence=5,
    stored=(StoredBlocks(KEY, 3, 1),),
    evicted=bytes(64),
)
MEMBERSHIP = MembershipEvent(
    worker=WorkerId("decode-west"),
    role="decode",
    dc=Datacenter("west"),
    address="127.0.0.1:7122",
    fingerprint=ModelFingerprint("ab"),
    layout_hash=LayoutHash("cd"),
    model_name="smollm2-135m-instruct",
    epoch=Epoch(1),
    capacity=65536,
    pool_address="127.0.0.1:7102",
    codec_threads=4,
)
LOAD = LoadEvent(
    worker=WorkerId("decode-west"),
    epoch=Epoch(1),
    running=2,
    waiting=1,
    kv_usage=0.25,
    speed_tokens_per_s=31.5,
    at_ms=1_790_000_000_000,
    links=(LinkLoad(Datacenter("east"), 125e6, 1 << 20, 1 << 40, 0.04),),
    suspects=("127.0.0.1:7101",),
    step_profile=StepProfile(0.01, 2e-4, 1e-8, 1e-3, 1e-7, 12.5),
    queued_s=1.5,
    queued_tokens=4096,
    context_tokens=1024,
    step_tokens=512,
    busy=0.75,
    arrivals_per_s=2.5,
    hand_over_bytes_per_s=1e9,
    tier_bytes_per_s=1e8,
)

keys = st.lists(st.binary(min_size=32, max_size=32), max_size=5).map(b"".join)
u32 = st.integers(0, 2**32 - 1)
runs = st.builds(lambda keys, groups, some: StoredBlocks(keys, groups, groups & some), keys, u32, u32)
u64 = st.integers(min_value=1, max_value=2**64 - 1)


@given(
    st.builds(
        PlacementEvent,
        holder=st.text(min_size=1, max_size=20),
        dc=st.text(max_size=20),
        epoch=u64,
        sequence=u64,
        stored=st.lists(runs, max_size=5).map(tuple),
        evicted=keys,
        cleared=st.booleans(),
    )
)
def test_placement_round_trip(event: PlacementEvent) -> None:
    assert PlacementEvent.decode(event.encode()) == event


def test_keys_are_packed_back_to_back() -> None:
    assert unpack_keys(KEY + bytes(32)) == [KEY, bytes(32)]
    assert unpack_keys(b"") == []
    assert (PLACEMENT.stored[0].num_blocks, PLACEMENT.num_blocks) == (1, 3)


def test_memory_is_a_part_of_all_tiers() -> None:
    message = pb.PlacementEvent(version=EVENT_VERSION, holder="h", epoch=1)
    message.stored.add(keys=KEY, groups=0b01, memory_groups=0b11)
    assert PlacementEvent.decode(message.SerializeToString()).stored == (StoredBlocks(KEY, 0b01, 0b01),)


def test_round_trips_by_topic() -> None:
    for topic, event in ((TOPIC_PLACEMENT, PLACEMENT), (TOPIC_MEMBERSHIP, MEMBERSHIP), (TOPIC_LOAD, LOAD)):
        assert decode_event(topic, event.encode()) == event
    assert MembershipEvent.decode(MEMBERSHIP.leaving().encode()).left


def test_an_engine_that_does_not_say_how_many_threads_encode_has_one() -> None:
    old = pb.MembershipEvent(version=EVENT_VERSION, worker="w", role="decode", address="a:1", epoch=1)
    assert MembershipEvent.decode(old.SerializeToString()).codec_threads == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_bad_event(data: bytes) -> None:
    for topic in (TOPIC_PLACEMENT, TOPIC_MEMBERSHIP, TOPIC_LOAD):
        try:
            decode_event(topic, data)
        except BadEvent:
            pass


@pytest.mark.parametrize(
    ("topic", "data"),
    [
        (TOPIC_PLACEMENT, b""),  # version 0
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=1, holder="h", epoch=1).SerializeToString()),  # a block a message
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=EVENT_VERSION, holder="", epoch=1).SerializeToString()),
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=EVENT_VERSION, holder="h").SerializeToString()),
        (
            TOPIC_PLACEMENT,
            pb.PlacementEvent(version=EVENT_VERSION, holder="h", epoch=1, evicted=b"short").SerializeToString(),
        ),
        (
            TOPIC_PLACEMENT,
            pb.PlacementEvent(
                version=EVENT_VERSION, holder="h", epoch=1, stored=[pb.StoredBlocks(keys=b"short")]
            ).SerializeToString(),
        ),
        (TOPIC_MEMBERSHIP, replace(MEMBERSHIP, address="").encode()),
        (
            TOPIC_MEMBERSHIP,
            pb.MembershipEvent(
                version=EVENT_VERSION, worker="w", role="cook", address="a", epoch=1
            ).SerializeToString(),
        ),
        (TOPIC_LOAD, replace(LOAD, kv_usage=1.5).encode()),
        (TOPIC_LOAD, replace(LOAD, kv_usage=float("nan")).encode()),
        (TOPIC_LOAD, replace(LOAD, speed_tokens_per_s=float("inf")).encode()),
        ("other.topic", LOAD.encode()),
    ],
)
def test_what_is_no_event(topic: str, data: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_event(topic, data)
