"""What goes first when room is needed: chains from their ends, dispensable windows, what is worth least."""

import pytest

from services.cachepool.store.block import Block
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.reuse import CORRELATED_S, History, ReuseClock
from shared.errors import Overloaded
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.tenant import Tenant
from tests.support.samples import ALL, BLOCK_BYTES, FULL, ByWorth, SamplePool, frame, key, keys, wanting
from tests.unit.cachepool.store.test_store import taken

A, B, C, D = keys("chain", 4)
FULL_LAYERS = 0b101
"""Of `LAYOUT`: what stays of a block whose window entries went."""


def crowd(pool: SamplePool, count: int = 1, name: object = "crowd") -> None:
    """Store single blocks that nobody asks for again."""
    for number in range(count):
        pool.fill(key((name, number)))


def test_the_least_recently_used_block_goes_first() -> None:
    pool = SamplePool(2, FULL)
    pool.fill(A)
    pool.fill(B)
    pool.store.close(pool.reader(A))
    pool.fill(C)
    assert pool.held(A, B, C) == [True, False, True]
    assert pool.store.stats.num_evicted == 1
    assert pool.groups[-2:] == [(B, 0), (C, 0b1)]


def test_a_chain_is_evicted_from_its_tail() -> None:
    pool = SamplePool(4, FULL)
    pool.fill(A, B, C)
    for number, expected in enumerate([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]):
        pool.fill(key(("other", number)))
        assert pool.held(A, B, C) == [bool(flag) for flag in expected]


def test_a_chain_published_in_parts_is_evicted_from_its_tail_too() -> None:
    pool = SamplePool(4, FULL)
    pool.fill(A, B)
    writer = pool.store.open_writer()
    pool.store.grant(writer, FULL, [BlockEntries(B, 0), *wanting([C, D])])  # B with no layers: only C's predecessor
    for block_key in (C, D):
        for layer in range(3):
            pool.store.put(writer, frame(block_key, layer, FULL))
    pool.store.abandon(writer)
    pool.fill(key("x"))
    assert pool.held(A, B, C, D) == [True, True, True, False]
    pool.fill(key("y"))
    assert pool.held(A, B, C, D) == [True, True, False, False]


def test_using_a_tail_keeps_its_whole_prefix() -> None:
    pool = SamplePool(4, FULL)
    pool.fill(A, B)
    pool.fill(C)
    pool.store.close(pool.reader(B))
    pool.fill(D)
    pool.fill(key("x"), key("y"))  # needs room for one: C goes, then B, whose use protects A
    assert pool.held(A, B, C, D) == [True, False, False, True]


def test_order_is_kept_where_the_store_saw_the_tail_before_the_head() -> None:
    pool = SamplePool(2, FULL)
    pool.fill(B)
    pool.fill(A)
    pool.store.close(pool.reader(A, B))
    pool.fill(C)
    assert pool.held(A, B, C) == [True, False, True]


def test_what_readers_or_writers_hold_is_not_evicted() -> None:
    pool = SamplePool(2, FULL)
    pool.fill(A)
    reader = pool.reader(A)
    writer = pool.writer(B)
    pool.store.put(writer, frame(B, 0, FULL))
    late = pool.writer(C)
    with pytest.raises(Overloaded):
        pool.store.put(late, frame(C, 0, FULL))
    pool.store.check_integrity()
    assert len(taken(reader)) == 3
    for layer in (1, 2):
        pool.store.put(writer, frame(B, layer, FULL))
    pool.store.close(reader)
    pool.store.abandon(late)
    pool.fill(D)
    assert pool.held(A, B, D) == [True, False, True], "A was let go of last"


def test_a_pool_that_never_evicts_does_not_grow() -> None:
    pool = SamplePool(100, FULL)
    pool.fill(A, B)
    for _ in range(3000):
        pool.store.close(pool.reader(A, B))
    assert len(pool.store._shelf._eviction._all._heap) < 1000


# Window entries


def layers(pool: SamplePool, block_keys: list[BlockKey]) -> list[int]:
    return [pool.store.lookup(block_key) for block_key in block_keys]


def test_window_entries_that_no_resume_needs_go_first_and_the_world_is_told() -> None:
    pool = SamplePool(5.7)
    chain = keys("long", 4)  # a window of 8 tokens: a resume behind the fourth block needs windows of the last two
    crowd(pool)
    pool.fill(*chain)
    pool.groups.clear()
    crowd(pool, name="new")
    assert layers(pool, chain) == [FULL_LAYERS, FULL_LAYERS, ALL, ALL], "though the single block is older"
    assert pool.held(key(("crowd", 0)), key(("new", 0))) == [True, True]
    assert {(chain[0], 0b01), (chain[1], 0b01)} < set(pool.groups)
    assert (pool.store.stats.num_trimmed, pool.store.stats.num_evicted) == (2, 0)
    pool.store.check_integrity()


def test_windows_at_which_requests_keep_resuming_are_kept() -> None:
    """A system prompt: its end is in the middle of every conversation."""
    pool = SamplePool(8.2)
    system = keys("system", 2)
    for number in range(4):
        pool.clock.advance(CORRELATED_S)
        if number:
            pool.read(*system)
        pool.fill(*system, *keys(("talk", number), 3))
    crowd(pool, 2)
    assert layers(pool, system) == [ALL, ALL]
    old = keys(("talk", 3), 3)
    assert layers(pool, old[:1]) == [FULL_LAYERS], "where nobody resumed again"


def test_where_a_text_forks_windows_are_kept_once_somebody_has_missed_them() -> None:
    """A document: the second question about it could have resumed at its end, had window entries been there."""
    pool = SamplePool(8.2)
    text = keys("text", 3)
    pool.fill(*text, *keys("first question", 2))
    crowd(pool, 4)
    assert layers(pool, text) == [FULL_LAYERS] * 3, "one question makes no fork"
    pool.clock.advance(CORRELATED_S)
    pool.fill(*text, *keys("second question", 2))
    assert layers(pool, text[1:]) == [ALL, ALL], "which had to be computed; a window reaches over two blocks"
    pool.read(*text, *keys("second question", 2))
    crowd(pool, 4, "new")
    assert layers(pool, text[1:]) == [ALL, ALL]
    pool.store.check_integrity()


def test_windows_come_back_when_somebody_writes_them() -> None:
    pool = SamplePool(4)
    chain = keys("long", 4)
    pool.fill(*chain)
    crowd(pool, 1)
    assert layers(pool, chain)[0] == FULL_LAYERS
    pool.fill(*chain[:2])
    assert layers(pool, chain)[0] == ALL
    pool.store.check_integrity()


def test_an_end_whose_windows_are_gone_goes_before_older_blocks_at_which_one_can_resume() -> None:
    pool = SamplePool(5.2)
    chain = keys("long", 4)
    crowd(pool)
    pool.fill(*chain)
    crowd(pool, name="new")
    assert layers(pool, chain)[:2] == [FULL_LAYERS, FULL_LAYERS]
    pool.fill(*keys("other", 4))
    assert pool.held(key(("crowd", 0))) == [False]
    assert layers(pool, chain) == [0, 0, 0, 0], "the first two fell with the ends that made them worth something"


def test_window_entries_under_a_lease_stay() -> None:
    pool = SamplePool(4.2)
    chain = keys("long", 4)
    pool.fill(*chain)
    reader = pool.reader(*chain, layers=FULL_LAYERS)
    with pytest.raises(Overloaded):
        crowd(pool)
    assert pool.held(*chain) == [True] * 4
    pool.store.close(reader)


# Worth


def use_often_then_another(pool: SamplePool) -> None:
    """A three times, then B once."""
    pool.fill(A)
    for _ in range(3):
        pool.clock.advance(CORRELATED_S)
        pool.read(A)
    pool.fill(B)


def test_what_was_used_more_often_outlives_what_was_used_later() -> None:
    pool = SamplePool(3, FULL, policy=ByWorth)
    use_often_then_another(pool)
    crowd(pool, 4)
    assert pool.held(A, B) == [True, False]


def test_uses_close_to_each_other_are_one() -> None:
    pool = SamplePool(3, FULL, policy=ByWorth)
    pool.fill(A)
    for _ in range(50):
        pool.read(A)
    pool.fill(B)
    crowd(pool, 2)
    assert pool.held(A, B) == [False, True]


def test_a_block_that_comes_back_is_known() -> None:
    pool = SamplePool(3, FULL, policy=ByWorth)
    for number in range(3):
        pool.clock.advance(CORRELATED_S)
        pool.fill(A)
        crowd(pool, 8, number)  # each time it is evicted again
    pool.fill(A)
    crowd(pool, 5)
    assert pool.held(A) == [True]


def block(depth: int = 0, uses: int = 1, at: float = 1000.0) -> Block:
    made = Block(A, FULL, 1)
    made.depth, made.charge = depth, BLOCK_BYTES
    made.uses.count, made.uses.counted_at, made.uses.last_at = uses, at, at
    return made


def test_depth_raises_worth_for_attention_costs_more_there() -> None:
    clock = ReuseClock()
    assert clock.bonus_s(block(depth=5000)) > clock.bonus_s(block(depth=50)) > clock.bonus_s(block())
    assert clock.bonus_s(block(uses=2)) - clock.bonus_s(block()) == clock.interval_s


def test_a_block_without_entries_is_worth_what_it_will_be() -> None:
    empty = block(depth=50)
    empty.charge = 0
    assert ReuseClock().bonus_s(empty) == ReuseClock().bonus_s(block(depth=50))


def test_what_was_not_proven_to_pay_is_not_done() -> None:
    pool = SamplePool(3, FULL)
    use_often_then_another(pool)
    crowd(pool, 2)
    assert pool.held(A, B) == [False, True]


def test_the_reuse_interval_is_learnt() -> None:
    clock, used = ReuseClock(), block(uses=0)
    for number in range(6):
        assert clock.count(used.uses, 1000.0 + 70 * number)
        assert not clock.count(used.uses, 1001.0 + 70 * number)
    assert (clock.interval_s, used.uses.count) == (70.0, 6)


def test_history_is_bounded_by_what_is_stored() -> None:
    history = History()
    for number, name in enumerate(keys("gone", 1000)):
        used = block(uses=number % 7 + 1, at=float(number)).uses
        history.remember(name, used, num_blocks=10)
        assert len(history) <= 10 * History.PER_BLOCK
    assert history.recall(keys("gone", 1000)[-1]).count == 999 % 7 + 1
    assert history.recall(keys("gone", 1000)[-1]).count == 0, "recalled once"
    assert history.recall(keys("gone", 1000)[0]).count == 0, "long forgotten"


def test_an_order_of_nothing_is_empty() -> None:
    order = Eviction(lambda: 0.0, by_tenant=True)
    assert order.pop() is None
    assert order.pop(Tenant("nobody")) is None
