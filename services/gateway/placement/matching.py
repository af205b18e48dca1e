"""What each pool holds of one prefix: one pass over the table in C, or the same in NumPy. Pure."""

from typing import NamedTuple

import numpy as np

from services.gateway.placement.held import HeldPrefix
from services.gateway.placement.states import States
from services.gateway.placement.table.native import Matched, load_match
from services.gateway.placement.table.pairs import OwnedPairs
from services.gateway.placement.table.table import Positions
from services.gateway.placement.table.words import words
from shared.kv.hashing import KEY_BYTES
from shared.kv.layout import KvLayout
from shared.kv.resume import GroupMasks, no_groups
from shared.native import address_of


class Rows(NamedTuple):
    """Masks of the holders that have something; they share row 0 who have nothing."""

    of: Positions  # by holder
    masks: GroupMasks  # [rows, 2, blocks]: groups in any tier, in memory


def held_by_number(
    layout: KvLayout, states: States, pairs: OwnedPairs, keys: bytes, num_holders: int
) -> list[HeldPrefix]:
    """Return what each holder has of these blocks, by its number. Keys are packed."""
    rows = rows_in_c(states, pairs, keys, num_holders) or rows_in_numpy(layout, states, pairs, keys, num_holders)
    rows.masks.setflags(write=False)
    held = list(map(HeldPrefix, rows.masks))
    return [held[row] for row in rows.of.tolist()]


def rows_in_c(states: States, pairs: OwnedPairs, keys: bytes, num_holders: int) -> Rows | None:
    """None where there is no compiler, for layouts of more groups than a byte has bits, and when nothing is asked."""
    match = load_match()
    if match is None or states.masks.itemsize > 1 or not (keys and num_holders):
        return None
    num_blocks = len(keys) // KEY_BYTES
    rows = Rows(np.zeros(num_holders, np.intp), np.empty((num_holders + 1, 2, num_blocks), np.uint8))
    rows.masks[0] = 0
    matched = Matched(
        holder_of=address_of(pairs.owners.holder_of),
        values=address_of(states.masks),
        num_blocks=num_blocks,
        num_rows=1,
        rows=address_of(rows.of),
        masks=address_of(rows.masks),
    )
    for table in pairs.tables:
        match(table.in_c, keys, matched)
    return Rows(rows.of, rows.masks[: matched.num_rows])


def rows_in_numpy(layout: KvLayout, states: States, pairs: OwnedPairs, keys: bytes, num_holders: int) -> Rows:
    found, num_blocks = pairs.find(words(keys)), len(keys) // KEY_BYTES
    present = np.bincount(found.holders, minlength=num_holders).nonzero()[0]
    rows = np.zeros(num_holders, np.intp)
    rows[present] = np.arange(1, len(present) + 1)
    # Both masks of a block, 32 bits at most as on the wire, are set as one number of twice the size.
    masks = no_groups(layout, len(present) + 1, num_blocks, 2)
    both = np.dtype(f"u{2 * masks.itemsize}")
    flat, cells = masks.reshape(-1).view(both), (rows * num_blocks).take(found.holders) + found.blocks
    values = states.masks.view(both)[:, 0].take(found.states)
    flat[cells] = values
    # Only credits make a second pair of one block and holder: then their groups are joined.
    if states.is_assumed.take(found.states).any():
        np.bitwise_or.at(flat, cells, values)
    return Rows(rows, np.ascontiguousarray(masks.swapaxes(1, 2)))
