"""A lookup's keys on the wire: written and read a message at a time, as the generated code would one by one."""

from collections.abc import Sequence
from struct import Struct
from typing import cast

from google.protobuf.message import DecodeError

from shared.errors import BadRequest
from shared.ids import BlockKey
from shared.kv.hashing import KEY_BYTES
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import keys_from_bytes

_HEAD = b"\x0a" + bytes([KEY_BYTES])  # field 1, its length
_KEY = Struct(f"{len(_HEAD)}x{KEY_BYTES}s")


def encode_lookup(keys: Sequence[BlockKey]) -> bytes:
    """Return the bytes of the `LookupRequest` that names these keys."""
    return _HEAD + _HEAD.join(keys) if keys else b""


def decode_lookup(data: bytes) -> list[BlockKey] | Unreadable:
    """Return the keys of a `LookupRequest`, or what is wrong with it."""
    num_keys, rest = divmod(len(data), _KEY.size)
    if not rest and all(data[at :: _KEY.size] == _HEAD[at : at + 1] * num_keys for at in range(len(_HEAD))):
        return cast(list[BlockKey], [key for (key,) in _KEY.iter_unpack(data)])
    try:
        return keys_from_bytes(pb.LookupRequest.FromString(data).keys)
    except DecodeError as error:
        return Unreadable(BadRequest(f"no message that names keys: {error}"))
    except BadRequest as error:
        return Unreadable(error)
