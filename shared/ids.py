"""The identifiers that cross process boundaries, each a type of its own so that mypy keeps them apart."""

import time
import uuid
from typing import NewType

BlockKey = NewType("BlockKey", bytes)
"""32 bytes: the hash chain value of one KV block (see `shared.kv.hashing`)."""

WorkerId = NewType("WorkerId", str)
"""Names one process of the suite, for example `prefill-east`; also the holder id in placement events."""

RequestId = NewType("RequestId", str)
Datacenter = NewType("Datacenter", str)

ModelFingerprint = NewType("ModelFingerprint", str)
"""Hex sha256 over the model's weights, configuration and tokeniser."""

LayoutHash = NewType("LayoutHash", str)
"""Hex sha256 of a `KvLayout`: equal hashes mean byte-compatible KV entries."""

Epoch = NewType("Epoch", int)
"""One life of a process. A later start has a larger epoch, so that old events can be told from new ones."""


def new_request_id() -> RequestId:
    """Return a fresh request id, unique across gateways."""
    return RequestId(uuid.uuid4().hex)


def new_epoch() -> Epoch:
    """Return the epoch of a process that starts now: milliseconds since 1970, so that a restart gets a larger one."""
    return Epoch(time.time_ns() // 1_000_000)
