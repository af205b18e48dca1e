"""A state machine over the store: whatever readers and writers do, budget, leases, grants and delivery hold."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.cachepool.store.block import Writer
from services.cachepool.store.pins import Pins
from services.cachepool.store.store import Store
from services.cachepool.store.subscription import Subscription
from shared.errors import Overloaded
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.tenant import NO_TENANT, Tenant
from tests.support.samples import ALL, BLOCK_BYTES, ENTRY_BYTES, LAYOUT, ManualClock, frame, keys

CHAINS = [keys("one", 5), keys("two", 4), [*keys("one", 2), *keys("fork", 2)]]

FULL_LAYERS = 0b101

chains = st.sampled_from(CHAINS)
masks = st.integers(1, ALL)


class Expected:
    """What one reader has asked for and not got yet."""

    def __init__(self, blocks: list[BlockEntries]) -> None:
        self.order = {key: index for index, (key, _) in enumerate(blocks)}
        self.left = {(key, layer) for key, mask in blocks for layer in range(3) if mask >> layer & 1}


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.groups: dict[BlockKey, int] = {}
        self.store = Store(4 * BLOCK_BYTES + 100, self.clock, tenant_share=0.5)
        self.store.listen(on_groups=self._on_groups)
        self.pins = Pins(self.store, 0.5, 1.0, max_ttl_s=20.0)
        self.pinned: dict[str, tuple[float, dict[BlockKey, int]]] = {}  # the model's view: until when, which layers
        self.writers: list[Writer] = []
        self.readers: dict[Subscription, Expected] = {}
        self.granted: dict[int, set[tuple[BlockKey, int]]] = {}  # the model's view, by id of the writer

    def _on_groups(self, key: BlockKey, groups: int) -> None:
        if self.store.lookup(key) == 0:
            self._check_eviction(key)
        self.groups[key] = groups

    def _check_eviction(self, evicted: BlockKey) -> None:
        assert all(evicted not in expected.order for expected in self.readers.values()), "a reader held it"
        assert all(evicted != key for granted in self.granted.values() for key, _ in granted), "a writer held it"
        assert not any(evicted in kept for _, kept in self.pinned.values()), "it was pinned"
        assert not any(block.parent and block.parent.key == evicted for block in self.store._shelf), (
            "a successor is still here"
        )

    @precondition(lambda self: len(self.writers) < 4)
    @rule(tenant=st.sampled_from([NO_TENANT, Tenant("a"), Tenant("b")]))
    def open_writer(self, tenant: Tenant) -> None:
        writer = self.store.open_writer(tenant)
        self.writers.append(writer)
        self.granted[id(writer)] = set()

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), chain=chains, mask=masks)
    def ask(self, data: Any, chain: list[BlockKey], mask: int) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        start = data.draw(st.integers(0, len(chain) - 1))
        blocks = [BlockEntries(key, mask) for key in chain[start:]]
        for (key, _), grant in zip(blocks, self.store.grant(writer, LAYOUT, blocks), strict=True):
            assert grant.present == self.store.lookup(key) & mask
            assert not grant.granted & grant.present
            new = {(key, layer) for layer in range(3) if grant.granted >> layer & 1}
            assert not any(new & granted for granted in self.granted.values()), "an entry has two writers"
            self.granted[id(writer)] |= new

    @precondition(lambda self: any(self.granted.values()))
    @rule(data=st.data(), count=st.integers(1, 6))
    def put(self, data: Any, count: int) -> None:
        writer = data.draw(st.sampled_from([w for w in self.writers if self.granted[id(w)]]))
        order = [entry for chain in CHAINS for key in chain for entry in ((key, 0), (key, 1), (key, 2))]
        by_layer = data.draw(st.booleans())
        granted = sorted(self.granted[id(writer)], key=lambda e: (e[1] if by_layer else 0, order.index(e)))[:count]
        wrong = data.draw(st.sampled_from([None, None, "twice", "size", "unknown"]))
        frames = [frame(key, layer) for key, layer in granted]
        bad = {
            "twice": frames[0],
            "size": frames[-1]._replace(payload=b"short"),
            "unknown": frames[0]._replace(key=BlockKey(bytes(32))),
        }
        if wrong == "size":
            frames, granted = frames[:-1], granted[:-1]  # in the place of the last one, whose grant stays
        batch = frames if wrong is None else [*frames, bad[wrong], frame(*order[0])]
        kept = {k for expected in self.readers.values() for k in expected.order}
        before = {k: self.store.lookup(k) for k in kept}
        for _, layers in self.pinned.values():
            for k, mask in layers.items():
                before[k] = before.get(k, 0) | self.store.lookup(k) & mask
        full = {k: self.store.lookup(k) & FULL_LAYERS for chain in CHAINS for k in chain}
        result = self.store.put_all(writer, batch)  # grants protect blocks until their entries are in
        assert (result.error is None) == (wrong is None)
        assert result.num_done == len(granted)
        is_here = [bool(self.store.lookup(key) >> layer & 1) for key, layer in granted]
        assert is_here.count(True) == result.num_stored
        assert result.num_bytes == ENTRY_BYTES * result.num_stored
        self.granted[id(writer)] -= set(granted)
        assert all(self.store.lookup(k) & mask == mask for k, mask in before.items())
        for k, mask in full.items():
            assert self.store.lookup(k) & mask in (0, mask), "only window entries go before their block"

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), ago=st.sampled_from([0.0, 0.5, 2.0]))
    def release(self, data: Any, ago: float) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        key = data.draw(st.sampled_from([key for chain in CHAINS for key in chain]))
        self.store.release(writer, BlockEntries(key, 0b011), self.clock.now - ago)
        self.granted[id(writer)] -= {(key, 0), (key, 1)}

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def abandon(self, data: Any) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        assert self.store.abandon(writer) == len(self.granted.pop(id(writer)))
        self.writers.remove(writer)

    @precondition(lambda self: len(self.readers) < 4)
    @rule(chain=chains, mask=masks, wait_s=st.sampled_from([0.0, 1.0, 3.0]))
    def subscribe(self, chain: list[BlockKey], mask: int, wait_s: float) -> None:
        blocks = [BlockEntries(key, mask) for key in chain]
        reader = self.store.subscribe(LAYOUT, blocks, wait_s, lambda: None)
        self.readers[reader] = Expected(blocks)

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), max_bytes=st.sampled_from([1, 3 * ENTRY_BYTES, 1 << 20]))
    def take(self, data: Any, max_bytes: int) -> None:
        reader = data.draw(st.sampled_from(list(self.readers)))
        expected = self.readers[reader]
        ready = sorted(
            ((layer, expected.order[key]) for key, layer in expected.left if self.store.lookup(key) >> layer & 1)
        )
        got = []
        for sent in reader.take(max_bytes):
            expected.left.remove((sent.key, sent.layer))  # KeyError: sent twice, or not wanted
            got.append((sent.layer, expected.order[sent.key]))
        assert got == ready[: len(got)], "the lowest (layer, block) among what is ready goes first"
        assert got or not ready

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def take_missing(self, data: Any) -> None:
        reader = data.draw(st.sampled_from(list(self.readers)))
        for key, layers in reader.take_missing(self.clock()):
            for layer in (layer for layer in range(3) if layers >> layer & 1):
                self.readers[reader].left.remove((key, layer))
                assert not self.store.lookup(key) >> layer & 1, "a present entry was called missing"
                assert not any((key, layer) in granted for granted in self.granted.values())

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        reader = data.draw(st.sampled_from(list(self.readers)))
        del self.readers[reader]
        self.store.close(reader)

    @rule(name=st.sampled_from(["p", "q"]), chain=chains, count=st.integers(1, 3), ttl_s=st.sampled_from([2.0, 9.0]))
    def pin(self, name: str, chain: list[BlockKey], count: int, ttl_s: float) -> None:
        blocks = [BlockEntries(key, LAYOUT.needed_layers(index, count)) for index, key in enumerate(chain[:count])]
        try:
            present = self.pins.pin(name, LAYOUT, blocks, ttl_s, NO_TENANT)
        except Overloaded:
            return
        assert present == [self.store.lookup(key) for key, _ in blocks]
        self.pinned[name] = (self.clock.now + ttl_s, dict(blocks))

    @rule(name=st.sampled_from(["p", "q"]))
    def unpin(self, name: str) -> None:
        assert self.pins.unpin(name) == (self.pinned.pop(name, None) is not None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.pins.expire()
        self.pinned = {name: pin for name, pin in self.pinned.items() if pin[0] > self.clock.now}

    @invariant()
    def books_balance(self) -> None:
        self.store.check_integrity()
        stats = self.store.stats
        assert stats.num_leases == sum(len(expected.order) for expected in self.readers.values())
        assert len(self.pins) == len(self.pinned)
        assert (stats.num_readers, stats.num_writers) == (len(self.readers), len(self.writers))
        for reader, expected in self.readers.items():
            assert reader.num_left == len(expected.left)
        for key, groups in self.groups.items():
            assert groups == LAYOUT.group_mask(self.store.lookup(key))

    @invariant()
    def every_wait_ends(self) -> None:
        """Each entry that a reader still wants is ready, being written, or has a deadline."""
        being_written = {entry for granted in self.granted.values() for entry in granted}
        for reader, expected in self.readers.items():
            waiting = {
                (reader.blocks[index].key, layer)
                for index, layers in reader.without_writer()
                for layer in range(3)
                if layers >> layer & 1
            }
            absent = {(key, layer) for key, layer in expected.left if not self.store.lookup(key) >> layer & 1}
            assert absent - being_written == waiting
            assert (reader.next_deadline() is not None) == bool(waiting)

    def teardown(self) -> None:
        for writer in self.writers:
            self.store.abandon(writer)
        for reader, expected in self.readers.items():
            self.clock.advance(100.0)
            num_sent = len(reader.take(1 << 30))
            num_missing = sum(layers.bit_count() for _, layers in reader.take_missing(self.clock()))
            assert num_sent + num_missing == len(expected.left), "each wanted entry leaves exactly once"
            assert reader.done
            self.store.close(reader)
        for name in list(self.pinned):
            assert self.pins.unpin(name)
        assert (len(self.pins), self.pins.num_bytes) == (0, 0)
        assert self.store.stats[3:6] == (0, 0, 0)
        self.store.check_integrity()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)
