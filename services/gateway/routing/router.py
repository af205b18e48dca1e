"""Where a request runs and where its blocks come from: a pure function of prefix, placements and load."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.registry import Member, RegistryView, no_decode_worker
from services.gateway.placement.resume import GroupMasks, longest_resume, needed_groups, no_groups
from services.gateway.routing.codec import choose_codec, way_between
from services.gateway.routing.datacenters import Credit, credits_by_dc
from services.gateway.routing.plan import Plan, PlanKind, RequestFacts, RouterSettings
from shared.errors import NoWorker
from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.kv.hashing import num_prefix_blocks
from shared.kv.layout import KvLayout


def route(request: RequestFacts, members: RegistryView, settings: RouterSettings) -> Plan:
    """Plan a request. Raises `NoWorker` when nobody can decode.

    The paper's rule for abundant bandwidth (arXiv 2604.15039, section on routing): a prompt whose uncached part is
    longer than the threshold is prefilled in the other, compute-dense datacenter, any other at home.
    """
    layout = settings.layout
    decode = _pick_decode(request, members, settings)
    suspects = members.suspects(decode.dc)
    held = credits_by_dc(request.keys, request.held, members, layout, suspects)
    combined = no_groups(layout, len(request.keys))
    for credit in held.values():
        combined |= credit.groups
    usable = int(longest_resume(layout, combined))
    # A block that ends the prompt is taken where it is held, and then decode computes the last token alone. It is not
    # computed ahead: decode has to run that token in any case.
    enough = num_prefix_blocks(request.num_tokens, layout.block_tokens)
    workers: list[Member] = []
    if usable < enough:
        workers = _prefill_workers(request, members, settings, decode, held, usable)
    prefill = workers[0] if workers else None
    kind = _kind(enough, usable, prefill, decode)
    num_blocks = usable if kind == "decode_only" else max(usable, enough)
    held_there = held  # as the prefill worker's pool sees it
    if prefill is not None and (others := members.suspects(prefill.dc)) != suspects:
        held_there = credits_by_dc(request.keys, request.held, members, layout, others)
    nodes = {dc: members.nodes(dc) for dc in (*held, *held_there)}
    if prefill is not None and prefill.dc not in nodes:  # a pool that nobody has heard of, or whose content is unknown
        nodes[prefill.dc] = members.nodes(prefill.dc) or (prefill.pool_address,)
    return Plan(
        kind=kind,
        home_dc=decode.dc,
        decode=decode,
        prefill=prefill,
        prefill_spares=tuple(workers[1:]),
        num_blocks=num_blocks,
        usable_blocks=usable,
        decode_nodes=members.nodes(decode.dc),
        prefill_nodes=() if prefill is None else members.nodes(prefill.dc),
        decode_sources=_sources(_decode_choices(layout, decode, prefill, num_blocks, held), nodes),
        prefill_sources=_sources(_prefill_choices(layout, request, prefill, usable, held_there), nodes),
        prefill_codec=choose_codec(settings.codec, request.fidelity, way_between(members, prefill or decode, decode)),
        decode_codec=choose_codec(settings.codec, request.fidelity, way_between(members, decode, decode)),
        hand_off=settings.hand_off,
        wait_ms=0 if prefill is None else settings.block_wait_ms,
    )


def prefers_exact(exact: Plan, lossy: Plan) -> bool:
    """Return whether a request that allows loss does better in the lossless chain: the longer cached prefix wins.

    Of equal ones the lossless, unless blocks have to cross from another datacenter.
    """
    if exact.usable_blocks != lossy.usable_blocks:
        return exact.usable_blocks > lossy.usable_blocks
    return not exact.crosses


def _pick_decode(request: RequestFacts, members: RegistryView, settings: RouterSettings) -> Member:
    able = [member for member in members.decode if member.worker not in request.excluded]
    if not able:
        raise NoWorker(no_decode_worker(members))
    at_home = [member for member in able if member.dc == settings.dc]
    return min(at_home or able, key=lambda member: (member.load, member.worker))


def _prefill_workers(
    request: RequestFacts,
    members: RegistryView,
    settings: RouterSettings,
    decode: Member,
    held: Mapping[Datacenter, Credit],
    usable: int,
) -> list[Member]:
    """Return the workers of the best datacenter for this prompt, the best first; none: nobody can prefill.

    What is made where decode's pool suspects a node would not come: a prefix is worth no more than its first hole.
    """
    suspects = members.suspects(decode.dc)
    able = [
        member
        for member in members.prefill
        if member.worker not in request.excluded and suspects.isdisjoint(members.nodes(member.dc))
    ]
    uncached_tokens = request.num_tokens - usable * settings.layout.block_tokens
    prefers_home = uncached_tokens <= settings.offload_threshold_tokens

    def merit(member: Member) -> tuple[int, bool, int, int, str]:
        own = held.get(member.dc)
        promised = request.promised.get(member.worker, 0)
        # Who computes this very prefix for another request gets this one too: each block is computed once.
        following = promised if promised > usable else 0
        is_away = (member.dc == decode.dc) != prefers_home
        longest = max(own.longest if own else 0, promised)
        return -following, is_away, -longest, member.load, member.worker

    able.sort(key=merit)
    return [member for member in able if member.dc == able[0].dc]


def _kind(enough: int, usable: int, prefill: Member | None, decode: Member) -> PlanKind:
    if usable >= enough:
        return "none"
    if prefill is None:
        return "decode_only"
    return "local" if prefill.dc == decode.dc else "remote"


class _Choices(NamedTuple):
    """For each block of a prefix, where it is pulled from: an index into `dcs`, or -1."""

    dcs: list[Datacenter]
    of_block: NDArray[np.intp]


def _decode_choices(
    layout: KvLayout, decode: Member, prefill: Member | None, num_blocks: int, held: Mapping[Datacenter, Credit]
) -> _Choices:
    """Blocks that home lacks come from the prefill worker's pool, or from another that has them while that has not."""
    home, makes = decode.dc, None if prefill is None else prefill.dc
    others = _dcs_to_pull_from(held, home, first=makes)
    lacking = needed_groups(layout, num_blocks) & ~_groups_at(layout, held, home, num_blocks)
    choice, is_complete = _best(held, others, lacking)
    if makes is not None:
        if makes not in others:
            others.append(makes)
        will_be_made = -1 if makes == home else others.index(makes)
        choice = np.where((lacking != 0) & ~is_complete, will_be_made, choice)
    return _Choices(others, choice)


def _prefill_choices(
    layout: KvLayout, request: RequestFacts, prefill: Member | None, usable: int, held: Mapping[Datacenter, Credit]
) -> _Choices:
    """The longest usable prefix may lie in other pools than the prefill worker's own: it is pulled, not computed."""
    if prefill is None:
        return _Choices([], np.full(0, -1))
    others = _dcs_to_pull_from(held, prefill.dc)
    lacking = needed_groups(layout, usable) & ~_groups_at(layout, held, prefill.dc, usable)
    lacking[: request.promised.get(prefill.worker, 0)] = 0
    return _Choices(others, _best(held, others, lacking)[0])


def _dcs_to_pull_from(
    held: Mapping[Datacenter, Credit], own: Datacenter, first: Datacenter | None = None
) -> list[Datacenter]:
    """Return the other datacenters, best first: `first`, then by length of prefix, then by name for a stable order."""
    return sorted((dc for dc in held if dc != own), key=lambda dc: (dc != first, -held[dc].longest, dc))


def _best(
    held: Mapping[Datacenter, Credit], dcs: Sequence[Datacenter], lacking: GroupMasks
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return for each block the first of `dcs` with all lacking groups, or else with some; and whether it has all."""
    partial, whole = np.full(len(lacking), -1), np.full(len(lacking), -1)
    for number, dc in reversed(list(enumerate(dcs))):
        present = held[dc].groups[: len(lacking)] & lacking
        partial[present != 0] = number
        whole[(present == lacking) & (lacking != 0)] = number
    return np.where(whole >= 0, whole, partial), whole >= 0


def _groups_at(layout: KvLayout, held: Mapping[Datacenter, Credit], dc: Datacenter, num_blocks: int) -> GroupMasks:
    credit = held.get(dc)
    return no_groups(layout, num_blocks) if credit is None else credit.groups[:num_blocks]


def _sources(choices: _Choices, nodes: Mapping[Datacenter, tuple[str, ...]]) -> tuple[Source, ...]:
    """Join neighbouring blocks with one source."""
    of_block = choices.of_block
    edges = [0, *(np.flatnonzero(np.diff(of_block)) + 1).tolist(), len(of_block)]
    runs = ((first, end, int(of_block[first])) for first, end in pairwise(edges) if first < end)
    chosen = ((first, end, choices.dcs[number]) for first, end, number in runs if number >= 0)
    return tuple(Source(first, end, dc, nodes[dc]) for first, end, dc in chosen)


def sources_text(sources: Sequence[Source]) -> list[str]:
    """Return sources as a log line shows them."""
    return [f"{s.first}-{s.end}@{s.dc}" for s in sources]
