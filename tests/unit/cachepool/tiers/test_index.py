"""Which object goes first: never a parent before its children, else the least recently used."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.cachepool.tiers.breaker import FIRST_REST_S, LONGEST_REST_S, MAX_FAILURES, Breaker
from services.cachepool.tiers.index import ObjectIndex, Stored
from services.cachepool.tiers.objects import pack
from shared.ids import BlockKey
from shared.kv.layout import iter_layers
from tests.support.samples import ALL, LAYOUT, ManualClock, frame, keys

CHAIN = keys("chain", 6)
PARENT = dict(zip(CHAIN[1:], CHAIN, strict=False)) | {CHAIN[5]: CHAIN[2]}  # 0-1-2-3-4, and 5 after 2


def stored(key: BlockKey, used_at: float, layers: int = ALL) -> Stored:
    header = pack(key, PARENT.get(key), LAYOUT, [frame(key, layer) for layer in iter_layers(layers)])
    return Stored.of(header, used_at)


SIZE = stored(CHAIN[0], 0).total_bytes


def index_of(*block_keys: BlockKey, budget: int = 0, clock: ManualClock | None = None) -> ObjectIndex:
    index = ObjectIndex(budget, clock or ManualClock())
    for number, key in enumerate(block_keys):
        index.add(stored(key, number))
    return index


def victims(index: ObjectIndex) -> list[BlockKey]:
    gone = []
    while (victim := index.pop_victim()) is not None:
        gone.append(victim.key)
        index.remove(victim.key)
    return gone


def test_a_chain_goes_from_its_end_whatever_was_found_first() -> None:
    assert victims(index_of(*CHAIN[:5])) == CHAIN[4::-1]
    assert victims(index_of(*CHAIN[4::-1])) == CHAIN[4::-1]


def test_the_least_recently_used_end_goes_first() -> None:
    index = index_of(*CHAIN)
    assert (index.pop_victim() or stored(CHAIN[0], 0)).key == CHAIN[4]
    index = index_of(*CHAIN)
    index.touch(CHAIN[4], 99)
    assert victims(index)[0] == CHAIN[5]


def test_what_is_being_rewritten_is_spared_and_stays_a_candidate() -> None:
    index = index_of(CHAIN[0])
    assert index.pop_victim(spared=CHAIN[0]) is None
    assert victims(index) == [CHAIN[0]]


def test_budget_counts_what_is_there_and_what_is_being_written() -> None:
    index = index_of(*CHAIN[:3], budget=4 * SIZE)
    assert not index.lacks_room(SIZE)
    index.reserved_bytes += SIZE
    assert index.lacks_room(1)
    assert not index_of(*CHAIN).lacks_room(1 << 50), "0 is no limit"


def test_a_full_disk_is_a_budget_for_a_while() -> None:
    clock = ManualClock()
    index = index_of(*CHAIN[:3], clock=clock)
    index.fill_up(10)
    assert index.lacks_room(1)
    index.remove(CHAIN[2])
    assert not index.lacks_room(SIZE)
    clock.advance(10)
    assert not index.lacks_room(1 << 50)


def test_what_cannot_be_read_is_not_offered_for_a_while() -> None:
    clock = ManualClock()
    index = index_of(CHAIN[0], clock=clock)
    index.rest(CHAIN[0], 5)
    assert (index.readable(CHAIN[0], LAYOUT), index.layers(CHAIN[0])) == (0, ALL)
    clock.advance(5)
    assert index.readable(CHAIN[0], LAYOUT) == ALL


def test_the_breaker_opens_after_failures_in_a_row_and_waits_longer_each_time() -> None:
    clock = ManualClock()
    breaker = Breaker(clock)
    for _ in range(MAX_FAILURES - 1):
        breaker.failed()
    breaker.succeeded()
    for _ in range(MAX_FAILURES):
        assert breaker.rest_left_s == 0
        breaker.failed()
    rests = []
    for _ in range(8):
        rests.append(breaker.rest_left_s)
        clock.advance(breaker.rest_left_s)
        assert breaker.rest_left_s == 0
        breaker.failed()
    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    clock.advance(breaker.rest_left_s)
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open


class IndexMachine(RuleBasedStateMachine):
    """Whatever comes and goes: sizes add up, listeners know, no parent is a victim before its children."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[BlockKey, int] = {}
        self.index = ObjectIndex(0, ManualClock())
        self.index.on_change = self._changed
        self.model: dict[BlockKey, Stored] = {}
        self.now = 0.0

    def _changed(self, key: BlockKey) -> None:
        self.told[key] = self.index.layers(key)

    @rule(key=st.sampled_from(CHAIN), layers=st.integers(1, ALL))
    def add(self, key: BlockKey, layers: int) -> None:
        self.now += 1
        self.model[key] = stored(key, self.now, layers)
        self.index.add(self.model[key])

    @rule(key=st.sampled_from(CHAIN))
    def touch(self, key: BlockKey) -> None:
        self.now += 1
        self.index.touch(key, self.now)

    @rule(key=st.sampled_from(CHAIN))
    def lose(self, key: BlockKey) -> None:
        assert self.index.remove(key) == (self.model.pop(key, None) is not None)

    @precondition(lambda self: self.model)
    @rule(is_deleted=st.booleans())
    def evict(self, is_deleted: bool) -> None:
        victim = self.index.pop_victim()
        assert victim is not None
        free = [s for s in self.model.values() if not any(PARENT.get(other) == s.key for other in self.model)]
        assert victim is min(free, key=lambda s: s.used_at)
        if is_deleted:
            del self.model[victim.key]
            self.index.remove(victim.key)
        else:
            self.index.restore(victim)

    @invariant()
    def adds_up(self) -> None:
        assert self.index.used_bytes == sum(s.total_bytes for s in self.model.values())
        assert len(self.index) == len(self.model)
        assert {k: layers for k, layers in self.told.items() if layers} == {k: s.layers for k, s in self.model.items()}


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=30)
