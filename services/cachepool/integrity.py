"""The check that every frame passes on its way in, from writers and from peers alike."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import CorruptFrame
from shared.kv.frame import Frame, verify

INLINE_BYTES = 2 * 1024 * 1024
"""XXH3 runs at some 30 GB/s: below this size, handing the work to a thread takes longer than the work."""


class Checked(NamedTuple):
    intact: list[Frame]
    corrupt: list[Frame]


async def check(frames: Sequence[Frame]) -> Checked:
    """Sort frames by whether they are what their source sealed. Large batches are hashed off the event loop."""
    if sum(len(frame.payload) for frame in frames) > INLINE_BYTES:
        return await asyncio.to_thread(_check, frames)
    return _check(frames)


def _check(frames: Sequence[Frame]) -> Checked:
    checked = Checked([], [])
    for frame in frames:
        try:
            verify(frame)
        except CorruptFrame:
            checked.corrupt.append(frame)
        else:
            checked.intact.append(frame)
    return checked
