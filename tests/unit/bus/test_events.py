"""Events survive the wire, and what is no event is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.events import (
    TOPIC_LOAD,
    TOPIC_MEMBERSHIP,
    TOPIC_PLACEMENT,
    LinkLoad,
    LoadEvent,
    MembershipEvent,
    PlacementEvent,
    decode_event,
)
from shared.errors import BadEvent
from shared.ids import BlockKey, Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.proto import prfaas_pb2 as pb

KEY = BlockKey(bytes(range(32)))
PLACEMENT = PlacementEvent(
    holder=WorkerId("cachepool-east"),
    dc=Datacenter("east"),
    epoch=Epoch(1_790_000_000_000),
    sequence=5,
    stored=((KEY, 3),),
    evicted=(BlockKey(bytes(32)),),
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
)
LOAD = LoadEvent(
    worker=WorkerId("decode-west"),
    epoch=Epoch(1),
    running=2,
    waiting=1,
    kv_usage=0.25,
    speed_tokens_per_s=31.5,
    at_ms=1_790_000_000_000,
    links=(LinkLoad(Datacenter("east"), 125e6, 1 << 20, 1 << 40),),
)

keys = st.binary(min_size=32, max_size=32).map(BlockKey)
u64 = st.integers(min_value=1, max_value=2**64 - 1)


@given(
    st.builds(
        PlacementEvent,
        holder=st.text(min_size=1, max_size=20),
        dc=st.text(max_size=20),
        epoch=u64,
        sequence=u64,
        stored=st.lists(st.tuples(keys, st.integers(0, 2**32 - 1)), max_size=5).map(tuple),
        evicted=st.lists(keys, max_size=5).map(tuple),
        cleared=st.booleans(),
    )
)
def test_placement_round_trip(event: PlacementEvent) -> None:
    assert PlacementEvent.decode(event.encode()) == event


def test_round_trips_by_topic() -> None:
    for topic, event in ((TOPIC_PLACEMENT, PLACEMENT), (TOPIC_MEMBERSHIP, MEMBERSHIP), (TOPIC_LOAD, LOAD)):
        assert decode_event(topic, event.encode()) == event
    assert MembershipEvent.decode(MEMBERSHIP.leaving().encode()).left


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
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=2, holder="h", epoch=1).SerializeToString()),
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=1, holder="", epoch=1).SerializeToString()),
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=1, holder="h").SerializeToString()),
        (TOPIC_PLACEMENT, pb.PlacementEvent(version=1, holder="h", epoch=1, evicted=[b"short"]).SerializeToString()),
        (TOPIC_MEMBERSHIP, replace(MEMBERSHIP, address="").encode()),
        (
            TOPIC_MEMBERSHIP,
            pb.MembershipEvent(version=1, worker="w", role="cook", address="a", epoch=1).SerializeToString(),
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
