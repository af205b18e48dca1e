"""Recovery: whole objects of an earlier life are taken over, others discarded, each looked at once."""

import asyncio
import os
from pathlib import Path

import pytest

from services.cachepool.tiers import recovery as recovering
from services.cachepool.tiers.objects import HEAD_BYTES, object_path
from shared.errors import Unavailable
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.samples import ALL, LAYOUT, frame, key
from tests.support.tiers import SampleTier
from tests.support.waiting import until

A, B, C = key("a"), key("b"), key("c")


async def test_everything_whole_is_taken_over_and_the_rest_discarded() -> None:
    tier = SampleTier()
    tier.put(A)
    tier.put(B, [frame(B, 1)])
    torn = tier.put(C).raw
    tier.client.replace(object_path(C), torn)
    tier.client.replace("notes.txt", b"not ours")
    await tier.recovery.run()
    assert tier.recovery.done.is_set()
    assert [tier.index.layers(name) for name in (A, B, C)] == [ALL, 0b010, 0]
    assert (tier.count("objects_recovered_total"), tier.count("objects_torn_total")) == (2, 1)
    assert tier.client.names() == sorted([object_path(A), object_path(B), "notes.txt"])


async def test_an_object_under_the_name_of_another_is_discarded() -> None:
    tier = SampleTier()
    tier.put(A)
    tier.client.replace(object_path(B), tier.client.content(object_path(A)))
    await tier.recovery.check(B)
    assert tier.index.get(B) is None
    assert tier.client.names() == [object_path(A)]


async def test_a_header_longer_than_the_first_read_is_read_to_its_end() -> None:
    layout = KvLayout((LayerSpec(None, 1, 4),) * 250, "bfloat16", block_tokens=4)
    tier = SampleTier(layout=layout)
    assert len(tier.put(A, layout=layout).raw) > HEAD_BYTES
    await tier.recovery.check(A)
    assert tier.index.layers(A) == layout.all_layers


async def test_a_block_is_looked_at_before_the_list_has_come_and_once_after() -> None:
    tier = SampleTier()
    tier.put(A)
    await tier.recovery.settle(A)
    await tier.recovery.settle(A)
    assert tier.index.layers(A) == ALL
    assert tier.client.calls["get"] == 2, "nobody knows yet what is there"
    await tier.recovery.run()
    await tier.recovery.settle(A)
    assert tier.client.calls["get"] == 2


async def test_a_write_that_failed_puts_its_object_in_doubt() -> None:
    tier = SampleTier()
    await tier.recovery.run()
    tier.put(A)
    await tier.recovery.settle(A)
    assert tier.index.layers(A) == 0, "not there when it was listed, and nobody wrote it since"
    tier.recovery.doubt(A)
    await tier.recovery.settle(A)
    assert tier.index.layers(A) == ALL


async def test_an_object_that_is_gone_is_forgotten() -> None:
    tier = SampleTier()
    tier.add(A)
    tier.client.memory.delete(object_path(A))
    await tier.recovery.check(A)
    assert tier.index.get(A) is None
    assert tier.count("objects_torn_total") == 0


async def test_a_check_raises_what_reading_raises_and_changes_nothing() -> None:
    tier = SampleTier()
    tier.add(A)
    tier.client.error = "down"
    with pytest.raises(Unavailable):
        await tier.recovery.check(A)
    assert tier.index.layers(A) == ALL


async def test_a_store_that_is_down_is_asked_again_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovering, "FIRST_PAUSE_S", 0.001)
    tier = SampleTier()
    tier.put(A)
    tier.client.error = "down"
    running = asyncio.create_task(tier.recovery.run())
    await until(lambda: tier.client.calls.get("list", 0) >= 3)
    assert not tier.recovery.done.is_set()
    tier.client.error = ""
    await running
    assert tier.index.layers(A) == ALL


async def test_an_object_that_cannot_be_read_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after some attempts, and looked at again when somebody needs to know."""
    monkeypatch.setattr(recovering, "FIRST_PAUSE_S", 0.001)
    tier = SampleTier()
    tier.put(A)
    tier.put(B)
    tier.client.fails_of = object_path(A)
    await tier.recovery.run()
    assert [tier.index.layers(name) for name in (A, B)] == [0, ALL]
    tier.client.fails_of = ""
    await tier.recovery.settle(A)
    assert tier.index.layers(A) == ALL


async def test_a_budget_that_has_shrunk_is_kept_to() -> None:
    tier = SampleTier(budget_bytes=1)
    tier.put(A)
    tier.put(B)
    await tier.recovery.run()
    assert tier.client.names() == []
    assert tier.count("objects_dropped_total", reason="evicted") == 2


async def test_remains_of_an_earlier_life_are_swept_and_those_of_this_one_left(tmp_path: Path) -> None:
    tier = SampleTier(folder=tmp_path)
    folder = tmp_path / "ab"
    folder.mkdir()
    old, new, whole = folder / "abcd#1", folder / "abcd#2", folder / "abcd"
    for path in (old, new, whole):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(new, (2**32, 2**32))
    await tier.recovery.run()
    assert sorted(folder.iterdir()) == [whole, new]
    assert tier.count("objects_torn_total") == 1


async def test_a_folder_that_is_not_there_has_no_remains(tmp_path: Path) -> None:
    tier = SampleTier(folder=tmp_path / "none")
    tier.put(A)
    await tier.recovery.run()
    assert tier.index.layers(A) == LAYOUT.all_layers
