"""Serves probes of a link: entries that mean nothing, sent only while nobody else has anything to send there."""

import os
from collections.abc import Iterator
from typing import Any

import grpc.aio

from services.cachepool.links.links import PoolLinks
from services.cachepool.links.probing import MOST_BYTES
from services.cachepool.links.rate_limiter import BACKGROUND_BATCH_BYTES
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal
from shared.kv.hashing import KEY_BYTES
from shared.proto import prfaas_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

MAX_STREAMS = 64
"""Probes that are served at a time, over all who ask."""

LEAST_MESSAGES = 8
"""The first message of a probe measures nothing: even a small one has several."""

_NO_BLOCK = BlockKey(bytes(KEY_BYTES))


class ProbeHandler:
    """Answers `Probe`. A probe gives way: it ends as soon as a foreground stream to that datacenter has something."""

    def __init__(self, links: PoolLinks) -> None:
        self._links = links
        self._num_streams = 0

    async def serve(self, request: pb.ProbeRequest, context: Context) -> None:
        """Send what is asked for. Raises `BadRequest`, `Overloaded`."""
        if request.num_bytes > MOST_BYTES:
            raise BadRequest(f"a probe has at most {MOST_BYTES} bytes, not {request.num_bytes}")
        if self._num_streams >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} probes are being served already")
        sender = self._links.sender(request.dc, is_background=True)
        self._num_streams += 1
        try:
            for frame in _frames(request.num_bytes):
                async with sender.permit(0.0) as is_granted:
                    if not is_granted:
                        return
                    await context.write([frame])
        finally:
            self._num_streams -= 1


def _frames(num_bytes: int) -> Iterator[Frame]:
    """Make entries of so many bytes in all, which nothing on the way can compress."""
    size = min(BACKGROUND_BATCH_BYTES, max(1, num_bytes // LEAST_MESSAGES))
    for start in range(0, num_bytes, size):
        yield seal(_NO_BLOCK, 0, os.urandom(min(size, num_bytes - start)), Codec.RAW)
