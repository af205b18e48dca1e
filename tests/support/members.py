"""Workers and views of a cluster for routing, without a bus."""

from collections.abc import Mapping, Sequence

import numpy as np

from services.gateway.cluster.links import LinkReports, Links
from services.gateway.cluster.view import PoolMember, PoolMembers, RegistryView
from services.gateway.cluster.workers import WORKER, Member, Workers, new_row
from shared.ids import Datacenter, WorkerId


def member(worker: str, dc: Datacenter) -> Member:
    """A worker whose pool is its datacenter's only one."""
    return Member(WorkerId(worker), dc, f"{worker}:1", f"pool-{dc}:1")


def workers(dcs: Sequence[Datacenter], members: Sequence[Member], **columns: Sequence[float]) -> Workers:
    """A table of these workers; `columns` give their figures, one for each worker."""
    rows = [new_row(number, dcs.index(one.dc)) for number, one in enumerate(members)]
    table = np.concatenate(rows) if rows else np.zeros(0, WORKER)
    for name, values in columns.items():
        table[name] = values
    return Workers(tuple(members), table)


def view(
    decode: Sequence[Member] = (),
    prefill: Sequence[Member] = (),
    pools: Mapping[WorkerId, PoolMember] | None = None,
    problems: tuple[str, ...] = (),
    loads: Mapping[Member, int] | None = None,
) -> RegistryView:
    """A cluster of these; `loads` are the requests of workers that have some."""
    pools, loads = pools or {}, loads or {}
    named = (*(one.dc for one in (*decode, *prefill)), *(pool.dc for pool in pools.values()))
    dcs = tuple(dict.fromkeys(named))
    decoding, prefilling = (
        workers(dcs, ones, requests=[loads.get(one, 0) for one in ones]) for ones in (decode, prefill)
    )
    links = Links.reported(dcs, [LinkReports(pool.dc, pool.links) for pool in pools.values()])
    return RegistryView(dcs, decoding, prefilling, PoolMembers(pools), links, lambda: problems)
