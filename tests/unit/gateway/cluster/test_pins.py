"""Prefixes that are kept, over pool nodes that only remember their pins and a clock of our own."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from services.gateway.cluster import pins
from services.gateway.cluster.pins import Prefix, Prefixes
from services.gateway.cluster.registry import Registry
from shared.errors import NotFound, NoWorker, Overloaded, WorkerLost
from shared.ids import BlockKey, Datacenter, LayoutHash, ModelFingerprint
from shared.kv.entries import BlockEntries
from shared.kv.rendezvous import partition
from shared.tenant import tenant_of
from tests.support.events import member
from tests.support.gateway import LAYOUT
from tests.support.placement import key
from tests.support.workers import RecordedPools

KEYS = [key(number) for number in range(8)]
NODES = ["pool-a:1", "pool-b:1"]  # each owns some of them


class PinsBench:
    """Two pool nodes at home and one away."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.registry = Registry(ModelFingerprint("f"), LayoutHash("l"))
        for node in NODES:
            self.join(node)
        self.join("pool-away:1", "east")
        self.pools = RecordedPools()
        self.prefixes = Prefixes(LAYOUT, self.registry, self.pools, Datacenter("west"), lambda: self.now)

    def join(self, address: str, dc: str = "west", epoch: int = 1, *, left: bool = False) -> None:
        event = replace(member(address, epoch), role="cachepool", dc=Datacenter(dc), address=address, left=left)
        self.registry.apply_membership(event, 0)

    async def keep(self, keys: list[BlockKey] = KEYS, ttl_s: float = 60.0) -> Prefix:
        return await self.prefixes.keep(keys, 130, tenant_of("salt"), ttl_s, "mine")

    def pinned(self, prefix: Prefix) -> dict[str, list[BlockEntries]]:
        return {node: list(pin.blocks) for (node, name), pin in self.pools.pins.items() if name == prefix.id}


@pytest.fixture
def bench() -> PinsBench:
    return PinsBench()


async def test_each_node_at_home_keeps_what_it_owns_and_a_resume_needs(bench: PinsBench) -> None:
    prefix = await bench.keep()
    needed = [BlockEntries(name, LAYOUT.needed_layers(number, len(KEYS))) for number, name in enumerate(KEYS)]
    assert {entries.layers for entries in needed} == {0b01, 0b11}, "a window's entries are needed at the end alone"
    assert bench.pinned(prefix) == {node: [needed[i] for i in own] for node, own in partition(KEYS, NODES).items()}
    assert len(bench.pinned(prefix)) == 2
    assert {(pin.ttl_s, pin.tenant) for pin in bench.pools.pins.values()} == {(60, tenant_of("salt"))}
    assert bench.prefixes.current() == [prefix]


async def test_the_same_blocks_again_start_their_time_anew(bench: PinsBench) -> None:
    first = await bench.keep()
    bench.now += 50
    again = await bench.keep()
    assert bench.prefixes.current() == [again]
    assert (again.id, again.created_at, again.ends_at) == (first.id, 1000.0, 1110.0)
    bench.now += 60
    assert bench.prefixes.current() == []


async def test_a_new_prefix_that_one_node_refuses_is_pinned_nowhere(bench: PinsBench) -> None:
    bench.pools.failures[list(partition(KEYS, NODES))[1]] = Overloaded("full")
    with pytest.raises(Overloaded):
        await bench.keep()
    assert bench.pools.pins == {}
    assert bench.prefixes.current() == []


async def test_a_prefix_that_cannot_be_renewed_by_its_client_stays_as_it_was(bench: PinsBench) -> None:
    first = await bench.keep()
    pinned = bench.pinned(first)
    bench.pools.failures[NODES[0]] = WorkerLost("gone")
    with pytest.raises(WorkerLost):
        await bench.keep(ttl_s=600.0)
    assert bench.prefixes.current() == [first]
    assert bench.pinned(first) == pinned


async def test_without_a_pool_at_home_nothing_is_kept(bench: PinsBench) -> None:
    for node in NODES:
        bench.join(node, left=True)
    with pytest.raises(NoWorker, match="west"):
        await bench.keep()
    assert bench.pools.pins == {}


async def test_so_many_prefixes_and_no_more(bench: PinsBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_PREFIXES", 2)
    await bench.keep()
    await bench.keep(KEYS[:5])
    with pytest.raises(Overloaded):
        await bench.keep(KEYS[:4])
    await bench.keep()  # known already
    bench.now += 61
    await bench.keep(KEYS[:4])  # the others' time is over


async def test_what_is_dropped_is_unpinned_and_unknown(bench: PinsBench) -> None:
    prefix = await bench.keep()
    await bench.prefixes.drop(prefix.id)
    assert bench.pools.pins == {}
    with pytest.raises(NotFound, match=prefix.id):
        await bench.prefixes.drop(prefix.id)


async def test_a_node_that_cannot_be_reached_is_left_to_forget(bench: PinsBench) -> None:
    prefix = await bench.keep()
    bench.pools.failures[NODES[0]] = WorkerLost("gone")
    with capture_logs() as logs:
        await bench.prefixes.drop(prefix.id)
    assert list(bench.pinned(prefix)) == [NODES[0]]
    assert [(line["event"], line["node"]) for line in logs] == [("prefix_not_unpinned", NODES[0])]


async def test_renewing_reaches_a_node_that_joined_with_the_time_that_is_left(bench: PinsBench) -> None:
    prefix = await bench.keep()
    bench.join("pool-c:1")
    bench.now += 45
    await bench.prefixes.renew()
    nodes = [*NODES, "pool-c:1"]
    owned = partition(KEYS, nodes)
    for node in owned:
        assert [entries.key for entries in bench.pinned(prefix)[node]] == [KEYS[i] for i in owned[node]]
    assert {bench.pools.pins[node, prefix.id].ttl_s for node in owned} == {15}


async def test_a_prefix_that_cannot_be_renewed_does_not_hold_up_the_others(bench: PinsBench) -> None:
    first, second = await bench.keep(), await bench.keep(KEYS[:1])
    bench.pools.pins.clear()
    (owner,) = partition(KEYS[:1], NODES)
    other = next(node for node in NODES if node != owner)
    bench.pools.failures[other] = WorkerLost("gone")
    with capture_logs() as logs:
        await bench.prefixes.renew()
    assert [line["prefix"] for line in logs if line["event"] == "prefix_not_renewed"] == [first.id]
    assert list(bench.pinned(second)) == [owner]


async def test_a_prefix_that_is_dropped_while_it_is_renewed_is_unpinned_again(bench: PinsBench) -> None:
    prefix = await bench.keep()
    bench.pools.meanwhile = lambda: bench.prefixes.drop(prefix.id)
    await bench.prefixes.renew()
    assert bench.pools.pins == {}
