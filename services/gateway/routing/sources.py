"""Where the blocks of a prefix are pulled from: pure arithmetic on what each datacenter holds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.datacenters import Credit
from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.kv.layout import KvLayout
from shared.kv.resume import GroupMasks, needed_groups, no_groups


def decode_sources(
    layout: KvLayout,
    home: Datacenter,
    maker: Datacenter | None,
    num_blocks: int,
    credits: Mapping[Datacenter, Credit],
    nodes: Mapping[Datacenter, tuple[str, ...]],
) -> tuple[Source, ...]:
    """Return where decode's pool, in `home`, pulls what it lacks of the first `num_blocks` blocks.

    `maker` is the datacenter of the prefill worker, if there is one: its pool has, or will have, every block; another
    pool that has a block while that one lacks it is asked instead.
    """
    others = _dcs_to_pull_from(credits, home, first=maker)
    lacking = needed_groups(layout, num_blocks) & ~_groups_at(layout, credits, home, num_blocks)
    choice, is_complete = _best(credits, others, lacking)
    if maker is not None:
        if maker not in others:
            others.append(maker)
        will_be_made = -1 if maker == home else others.index(maker)
        choice = np.where((lacking != 0) & ~is_complete, np.int16(will_be_made), choice)
    return _joined(_Choices(others, choice), nodes)


def prefill_sources(
    layout: KvLayout,
    maker: Datacenter,
    num_usable: int,
    num_promised: int,
    credits: Mapping[Datacenter, Credit],
    nodes: Mapping[Datacenter, tuple[str, ...]],
) -> tuple[Source, ...]:
    """Return where the prefill worker's pool, in `maker`, pulls the usable prefix from: it is pulled, not computed.

    The first `num_promised` blocks need no source: the worker computes them for another request.
    """
    others = _dcs_to_pull_from(credits, maker)
    lacking = needed_groups(layout, num_usable) & ~_groups_at(layout, credits, maker, num_usable)
    lacking[:num_promised] = 0
    return _joined(_Choices(others, _best(credits, others, lacking)[0]), nodes)


class _Choices(NamedTuple):
    """For each block of a prefix, where it is pulled from: an index into `dcs`, or -1."""

    dcs: list[Datacenter]
    of_block: NDArray[np.int16]


def _dcs_to_pull_from(
    credits: Mapping[Datacenter, Credit], own: Datacenter, first: Datacenter | None = None
) -> list[Datacenter]:
    """Return the other datacenters, best first: `first`, then by length of prefix, then by name for a stable order."""
    return sorted((dc for dc in credits if dc != own), key=lambda dc: (dc != first, -credits[dc].longest, dc))


def _best(
    credits: Mapping[Datacenter, Credit], dcs: Sequence[Datacenter], lacking: GroupMasks
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Return for each block the first of `dcs` with all lacking groups, or else with some; and whether it has all."""
    is_lacking, num_dcs = lacking != 0, len(dcs)
    if not num_dcs or not is_lacking.any():
        return np.full(len(lacking), -1, np.int16), np.zeros(len(lacking), np.bool_)
    present = np.array([credits[dc].groups[: len(lacking)] for dc in dcs]) & lacking
    # A merit for each block and datacenter: some of the groups are worth n at the first, 1 at the last; all are n more.
    some, most = np.array(range(num_dcs, 0, -1), np.int16)[:, np.newaxis], np.int16(num_dcs)
    best = ((present != 0) * some + (present == lacking) * most).max(axis=0) * is_lacking
    numbers = range(num_dcs - 1, -1, -1)
    return np.array([-1, *numbers, *numbers], np.int16).take(best), best > num_dcs


def _groups_at(layout: KvLayout, credits: Mapping[Datacenter, Credit], dc: Datacenter, num_blocks: int) -> GroupMasks:
    credit = credits.get(dc)
    return no_groups(layout, num_blocks) if credit is None else credit.groups[:num_blocks]


def _joined(choices: _Choices, nodes: Mapping[Datacenter, tuple[str, ...]]) -> tuple[Source, ...]:
    """Join neighbouring blocks with one source."""
    of_block = choices.of_block
    edges = [0, *((of_block[1:] != of_block[:-1]).nonzero()[0] + 1).tolist(), len(of_block)]
    runs = ((first, end, int(of_block[first])) for first, end in pairwise(edges) if first < end)
    chosen = ((first, end, choices.dcs[number]) for first, end, number in runs if number >= 0)
    return tuple(Source(first, end, dc, nodes[dc]) for first, end, dc in chosen)
