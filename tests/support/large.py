"""Entries as large as a small model's, so that some are on their way while others have come."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from shared.deadline import Deadline
from shared.ids import BlockKey
from shared.kv.frame import Frame, open_frame
from shared.kv.layout import KvLayout, LayerSpec, iter_layers
from shared.pool.client import PoolClient
from shared.pool.publication import Publication
from shared.rpc.convert import MAX_BATCH_BYTES
from tests.support.samples import frame, keys, wanting
from tests.support.waiting import LIMIT_S

LARGE = KvLayout((LayerSpec(None, 3, 64),) * 2, "bfloat16")
"""Two layers of 48 KiB a block."""
LARGE_BYTES = LARGE.entry_bytes(0)
NUM_IN_A_MESSAGE = MAX_BATCH_BYTES // LARGE_BYTES
LONG = keys("long", 30)
"""A chain of some MiB."""


def large_frames(block_keys: Sequence[BlockKey], layers: int = LARGE.all_layers) -> list[Frame]:
    return [frame(name, layer, LARGE) for layer in iter_layers(layers) for name in block_keys]


def large_entries(block_keys: Sequence[BlockKey]) -> set[tuple[BlockKey, int]]:
    return {(name, layer) for name in block_keys for layer in range(LARGE.num_layers)}


async def placed_or_sent(publication: Publication, frames: Sequence[Frame]) -> int:
    """Send granted entries, from the pool's own memory where it gives room; return how many went that way."""
    slots = await publication.room([sent.key for sent in frames], LARGE_BYTES)
    going = []
    for sent, slot in zip(frames, slots, strict=True):
        if slot is not None:
            slot[:] = sent.payload
        going.append(sent if slot is None else sent._replace(payload=slot))
    for first in range(0, len(going), NUM_IN_A_MESSAGE):
        await publication.send(going[first : first + NUM_IN_A_MESSAGE])
    return sum(slot is not None for slot in slots)


async def write_all(client: PoolClient, block_keys: Sequence[BlockKey], layers: int = LARGE.all_layers) -> int:
    """Publish blocks that nobody has written; return how many entries were written in the pool's own memory."""
    async with client.publish(Deadline.after(2 * LIMIT_S)) as publication:
        grant = await publication.open(LARGE, wanting(block_keys, layers))
        assert grant.granted == [layers] * len(block_keys)
        return await placed_or_sent(publication, large_frames(block_keys, layers))


class Reading:
    """What a reader got: each entry once, and the right bytes."""

    def __init__(self, client: PoolClient, block_keys: Sequence[BlockKey], wait_s: float = 0.0) -> None:
        self.client = client
        self.keys = block_keys
        self.got: list[tuple[BlockKey, int]] = []
        self.missing: set[tuple[BlockKey, int]] = set()
        self.wait_s = wait_s

    async def run(
        self, then: Callable[[list[Frame]], Awaitable[None]] | None = None, *, doubted: bool = False
    ) -> "Reading":
        """Read all; `then` is awaited with the frames of each message, while they may be looked at."""
        blocks = wanting(self.keys, LARGE.all_layers)
        async with aclosing(
            self.client.fetch(LARGE, blocks, (), self.wait_s, Deadline.after(2 * LIMIT_S), doubted=doubted)
        ) as arrivals:
            async for arrived in arrivals:
                for came in arrived.frames:
                    assert open_frame(came) == frame(came.key, came.layer, LARGE).payload
                    self.got.append((came.key, came.layer))
                self.missing |= {(name, layer) for name, layers in arrived.missing for layer in iter_layers(layers)}
                if then is not None:
                    await then(arrived.frames)
        assert len(set(self.got)) == len(self.got), "an entry came twice"
        assert not self.missing & set(self.got)
        return self

    @property
    def has_all(self) -> bool:
        return set(self.got) == large_entries(self.keys)
