"""The guard of the order of eviction: ghosts are caches, and what they say is followed no sooner than it is proven."""

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trace.replay import DENSE, Lru, Setup, replay
from benchmarks.trace.source import synthetic
from services.cachepool.store.block import Block
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.guard import SAMPLE, Guard, _Ghost
from services.cachepool.store.reuse import CORRELATED_S, ReuseClock
from shared.ids import BlockKey
from tests.support.samples import FULL, ByWorth, key

POOL_BLOCKS = 400


@given(st.lists(st.integers(0, 12), max_size=80), st.integers(0, 8))
def test_a_ghost_in_the_order_of_last_use_is_an_lru_cache(numbers: list[int], limit: int) -> None:
    ghost, model = _Ghost(), OrderedDict[BlockKey, None]()
    for tick, number in enumerate(numbers):
        name = key(number)
        assert ghost.use(name, float(tick // 3), tick) == (name in model)
        model[name] = None
        model.move_to_end(name)
        while len(model) > limit:
            model.popitem(last=False)
        ghost.shrink(limit)
        assert set(ghost._ticks) == set(model)
        assert len(ghost._heap) <= 2 * limit + SAMPLE + 1


def test_what_is_worth_more_outlives_what_was_used_later() -> None:
    ghost = _Ghost()
    for tick, (name, worth) in enumerate([("a", 9.0), ("b", 1.0), ("c", 2.0)]):
        ghost.use(key(name), worth, tick)
    ghost.shrink(2)
    assert not ghost.use(key("b"), 3.0, 3)
    ghost.shrink(2)
    assert ghost.use(key("a"), 9.0, 4)


class Traffic:
    """Requests for single blocks on a guard, ten seconds apart."""

    def __init__(self) -> None:
        self.guard, self.reuse = Guard(), ReuseClock()
        self.blocks: dict[object, Block] = {}
        self.now = 0.0

    def ask(self, names: Iterator[object] | Sequence[object]) -> None:
        for name in names:
            self.now += CORRELATED_S
            block = self.blocks.get(name) or self.blocks.setdefault(name, Block(key(name), FULL, len(self.blocks)))
            block.tick = round(self.now)
            self.reuse.count(block.uses, self.now)
            self.guard.use([block], self.reuse.bonus_s, POOL_BLOCKS)

    def frequent_among_many(self, count: int) -> None:
        """A few hundred blocks come back again and again, later than LRU would keep them; the others never."""
        draw = random.Random(1)
        self.ask([draw.randrange(300) if draw.random() < 0.4 else (self.now, n) for n in range(count)])

    def bursts(self, count: int) -> None:
        """Blocks are used five times within what LRU keeps, and never again."""
        self.ask([(self.now, n // 2000, n % 400) for n in range(count)])


def test_the_order_by_worth_is_taken_where_it_is_proven_and_left_where_it_ends_to_pay() -> None:
    traffic = Traffic()
    told = [traffic.guard.worth_pays]
    for go_on in (traffic.frequent_among_many, traffic.bursts) * 2:
        go_on(24_000)
        told.append(traffic.guard.worth_pays)
    assert told == [False, True, False, True, False]


def test_ghosts_hold_a_sample_of_what_the_pool_holds() -> None:
    traffic = Traffic()
    traffic.frequent_among_many(3000)
    for ghost in (traffic.guard._by_last_use, traffic.guard._by_worth):
        assert len(ghost._ticks) == POOL_BLOCKS // SAMPLE
        assert len(ghost._heap) <= 2 * len(ghost._ticks) + SAMPLE + 1


def test_a_trace_on_which_worth_misleads_is_replayed_as_lru_does() -> None:
    requests = synthetic(400, seed=3)
    lru, by_worth, ours = (replay(requests, DENSE, 4000, policy, Setup()) for policy in (Lru, ByWorth, Eviction))
    assert by_worth.hit_percent < lru.hit_percent - 1
    assert ours.hit_percent >= lru.hit_percent - 0.3
