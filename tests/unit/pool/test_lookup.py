"""Keys of a lookup on the wire: ours and the generated code write and read the same bytes."""

import os

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from shared.ids import BlockKey
from shared.pool.lookup import decode_lookup, encode_lookup
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb

KEYS = st.lists(st.binary(min_size=32, max_size=32).map(BlockKey), max_size=4)
SAMPLE = [BlockKey(os.urandom(32)) for _ in range(3)]


@given(KEYS)
def test_the_bytes_are_those_of_the_generated_code(keys: list[BlockKey]) -> None:
    data = encode_lookup(keys)
    assert data == pb.LookupRequest(keys=keys).SerializeToString()
    assert decode_lookup(data) == keys


@given(KEYS, st.integers(0, 140), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_bytes_mean_what_they_mean_to_the_generated_code(
    keys: list[BlockKey], at: int, change: bytes, num_removed: int
) -> None:
    whole = encode_lookup(keys)
    data = whole[:at] + change + whole[at + num_removed :]
    found = decode_lookup(data)
    try:
        meant = list(pb.LookupRequest.FromString(data).keys)
    except DecodeError:
        assert isinstance(found, Unreadable)
        return
    if any(len(key) != 32 for key in meant):
        assert isinstance(found, Unreadable)
    else:
        assert found == meant


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode_lookup(SAMPLE)[:-1], id="cut short"),
        pytest.param(pb.LookupRequest(keys=[b"short"]).SerializeToString(), id="no key"),
        pytest.param(b"\xff" * 34, id="garbage"),
    ],
)
def test_what_names_no_keys_is_a_bad_request(data: bytes) -> None:
    found = decode_lookup(data)
    assert isinstance(found, Unreadable)
    assert isinstance(found.error, BadRequest)
