"""What a request asks for: wire messages to the store's terms, within the pool's bounds."""

from collections.abc import Sequence

from shared.errors import BadRequest
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import entries_from_messages, layout_from_message


def wanted(
    layout: pb.Layout, blocks: Sequence[pb.BlockEntries], max_blocks: int
) -> tuple[KvLayout, list[BlockEntries]]:
    """Return layout and blocks of a request. Raises `BadRequest`."""
    check_size(len(blocks), max_blocks)
    return layout_from_message(layout), entries_from_messages(blocks)


def check_size(num_blocks: int, max_blocks: int) -> None:
    """Raise `BadRequest` when a request names too many blocks."""
    if num_blocks > max_blocks:
        raise BadRequest(f"a request names at most {max_blocks} blocks, not {num_blocks}")
