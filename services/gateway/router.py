"""Where a request runs and where its blocks come from: a pure function of prefix, placements and load."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.gateway.index import Held
from services.gateway.registry import Member, RegistryView
from services.gateway.resume import longest_resume, needed_groups, no_groups
from shared.errors import NoWorker
from shared.ids import Datacenter, WorkerId
from shared.kv.codec import Codec
from shared.kv.entries import Source
from shared.kv.layout import KvLayout

PlanKind = Literal["none", "local", "remote", "decode_only"]


@dataclass(frozen=True, slots=True)
class RouterSettings:
    dc: Datacenter  # where requests shall be decoded: the gateway's own
    layout: KvLayout
    offload_threshold_tokens: int
    block_wait_ms: int
    codec: Codec


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the router knows of a request and of its prefix."""

    num_tokens: int
    num_blocks: int  # of the prefix: full blocks, never the last token's
    held: Mapping[WorkerId, Held] = field(default_factory=dict)  # by pool
    promised: Mapping[WorkerId, int] = field(default_factory=dict)  # leading blocks a prefill worker computes right now
    excluded: frozenset[WorkerId] = frozenset()  # workers that have failed this request


@dataclass(frozen=True, slots=True)
class Plan:
    """The router's decision. `sources` name the pools that the worker's own pool pulls absent blocks from."""

    kind: PlanKind
    home_dc: Datacenter
    decode: Member
    prefill: Member | None
    num_blocks: int  # that decode can count on, from caches or from prefill
    usable_blocks: int  # leading blocks that some pool holds already
    decode_sources: tuple[Source, ...]
    prefill_sources: tuple[Source, ...]
    codec: Codec
    wait_ms: int


def route(request: RequestFacts, members: RegistryView, settings: RouterSettings) -> Plan:
    """Plan a request. Raises `NoWorker` when nobody can decode.

    The paper's rule for abundant bandwidth (arXiv 2604.15039, section on routing): a prompt whose uncached part is
    longer than the threshold is prefilled in the other, compute-dense datacenter, any other at home.
    """
    decode = _pick_decode(request, members, settings)
    held = {members.pools[holder].address: h for holder, h in request.held.items() if holder in members.pools}
    combined = no_groups(settings.layout, request.num_blocks)
    for pool in held.values():
        combined |= pool.groups
    usable = int(longest_resume(settings.layout, combined))
    prefill = None
    if usable < request.num_blocks:
        prefill = _pick_prefill(request, members, settings, decode, held, usable)
    kind = _kind(request, usable, prefill, decode)
    num_blocks = usable if kind == "decode_only" else request.num_blocks
    return Plan(
        kind=kind,
        home_dc=decode.dc,
        decode=decode,
        prefill=prefill,
        num_blocks=num_blocks,
        usable_blocks=usable,
        decode_sources=_decode_sources(settings.layout, decode, prefill, num_blocks, held),
        prefill_sources=_prefill_sources(settings.layout, request, prefill, usable, held),
        codec=settings.codec,
        wait_ms=0 if prefill is None else settings.block_wait_ms,
    )


def _pick_decode(request: RequestFacts, members: RegistryView, settings: RouterSettings) -> Member:
    able = [member for member in members.decode if member.worker not in request.excluded]
    if not able:
        raise NoWorker(no_decode_worker(members))
    at_home = [member for member in able if member.dc == settings.dc]
    return min(at_home or able, key=lambda member: (member.load, member.worker))


def no_decode_worker(members: RegistryView) -> str:
    """Return the sentence that tells a user why nothing can be served."""
    reasons = f" ({'; '.join(members.problems)})" if members.problems else ""
    return f"no decode worker is available{reasons}"


def _pick_prefill(
    request: RequestFacts,
    members: RegistryView,
    settings: RouterSettings,
    decode: Member,
    held: Mapping[str, Held],
    usable: int,
) -> Member | None:
    able = [member for member in members.prefill if member.worker not in request.excluded]
    # Who computes this very prefix for another request gets this one too: each block is computed once.
    busy = [member for member in able if request.promised.get(member.worker, 0) > usable]
    if busy:
        return min(busy, key=lambda m: (-request.promised[m.worker], m.load, m.worker))
    home = [member for member in able if member.dc == decode.dc]
    remote = [member for member in able if member.dc != decode.dc]
    uncached_tokens = request.num_tokens - usable * settings.layout.block_tokens
    preferred, other = (home, remote) if uncached_tokens <= settings.offload_threshold_tokens else (remote, home)
    choices = preferred or other
    if not choices:
        return None

    def merit(member: Member) -> tuple[int, int, str]:
        own = held.get(member.pool_address)
        promised = request.promised.get(member.worker, 0)
        return -max(own.longest if own else 0, promised), member.load, member.worker

    return min(choices, key=merit)


def _kind(request: RequestFacts, usable: int, prefill: Member | None, decode: Member) -> PlanKind:
    if usable == request.num_blocks:
        return "none"
    if prefill is None:
        return "decode_only"
    return "local" if prefill.dc == decode.dc else "remote"


def _decode_sources(
    layout: KvLayout, decode: Member, prefill: Member | None, num_blocks: int, held: Mapping[str, Held]
) -> tuple[Source, ...]:
    """Blocks that home lacks come from the prefill worker's pool, or from another that has them while that has not."""
    home = decode.pool_address
    makes = None if prefill is None else prefill.pool_address
    others = _pools_to_pull_from(held, home, first=makes)
    needed = needed_groups(layout, num_blocks)

    def pick(block: int) -> str | None:
        lacking = int(needed[block]) & ~_groups_at(held, home, block)
        if not lacking:
            return None
        address, is_complete = _best_pool(held, others, block, lacking)
        if makes is None or is_complete:
            return address
        return None if makes == home else makes

    return _runs(num_blocks, pick)


def _prefill_sources(
    layout: KvLayout, request: RequestFacts, prefill: Member | None, usable: int, held: Mapping[str, Held]
) -> tuple[Source, ...]:
    """The longest usable prefix may lie in other pools than the prefill worker's own: it is pulled, not computed."""
    if prefill is None:
        return ()
    own = prefill.pool_address
    others = _pools_to_pull_from(held, own)
    promised = request.promised.get(prefill.worker, 0)
    needed = needed_groups(layout, usable)

    def pick(block: int) -> str | None:
        lacking = int(needed[block]) & ~_groups_at(held, own, block)
        return _best_pool(held, others, block, lacking)[0] if lacking and block >= promised else None

    return _runs(usable, pick)


def _pools_to_pull_from(held: Mapping[str, Held], own: str, first: str | None = None) -> list[str]:
    """Return the other pools, best first: `first`, then by length of prefix, then by address for a stable order."""
    others = [address for address in held if address != own]
    return sorted(others, key=lambda address: (address != first, -held[address].longest, address))


def _best_pool(held: Mapping[str, Held], pools: Iterable[str], block: int, lacking: int) -> tuple[str | None, bool]:
    """Return the first pool with all lacking groups of a block, or else the first with some; and whether it has all."""
    partial: str | None = None
    for address in pools:
        present = _groups_at(held, address, block) & lacking
        if present == lacking:
            return address, True
        if present and partial is None:
            partial = address
    return partial, False


def _groups_at(held: Mapping[str, Held], address: str, block: int) -> int:
    pool = held.get(address)
    return 0 if pool is None else int(pool.groups[block])


def _runs(num_blocks: int, pick: Callable[[int], str | None]) -> tuple[Source, ...]:
    """Join neighbouring blocks with one source."""
    runs: list[Source] = []
    for block in range(num_blocks):
        address = pick(block)
        if address is None:
            continue
        if runs and runs[-1].end == block and runs[-1].address == address:
            runs[-1] = runs[-1]._replace(end=block + 1)
        else:
            runs.append(Source(block, block + 1, address))
    return tuple(runs)


def sources_text(sources: Sequence[Source]) -> list[str]:
    """Return sources as a log line shows them."""
    return [f"{s.first}-{s.end}@{s.address}" for s in sources]
