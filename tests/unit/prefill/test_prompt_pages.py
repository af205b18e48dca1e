"""Sliding behind what was computed and sent: how far a prompt may go, and what its pages still hold."""

from dataclasses import dataclass

import pytest

from services.prefill.prompt_pages import PromptPages
from shared.engine.publish import PagePublisher
from shared.ids import BlockKey
from shared.model.pages.kv import PagedKv
from tests.support.tiny import tiny_model

BLOCK, CHUNK = 64, 128
STRIDE = 2 * CHUNK
NUM_BLOCKS = 16
END = NUM_BLOCKS * BLOCK
KEYS = [BlockKey(bytes([i]) * 32) for i in range(NUM_BLOCKS)]
WINDOWED, FULL = 0b1011, 0b0100  # of the tiny Gemma


@dataclass
class Sent(PagePublisher):
    """What a publisher says of itself."""

    num_blocks_sent: int = 0
    full: bool = False


def pages_of(kv: PagedKv) -> tuple[PromptPages, Sent]:
    reservation, sent = kv.reserve(KEYS, END, STRIDE), Sent()
    assert reservation is not None
    return PromptPages(kv, reservation, KEYS, sent, STRIDE), sent


def test_a_model_without_windows_is_held_back_by_the_backlog_only() -> None:
    pages, sent = pages_of(tiny_model("llama").kv)
    assert pages.limit(0, END) == END
    sent.full = True
    assert pages.limit(0, END) == 0


def test_computing_is_at_most_a_stride_ahead_of_sending_where_there_are_windows() -> None:
    kv = tiny_model("gemma3").kv
    pages, sent = pages_of(kv)
    for first in range(0, STRIDE, CHUNK):
        assert pages.limit(first, END) == STRIDE
        pages.begin(first, first + CHUNK)
    assert pages.limit(STRIDE, END) == 0
    sent.num_blocks_sent = 1
    assert pages.limit(STRIDE, END) == 0, "one block of room is not worth a step"
    assert pages.limit(STRIDE, STRIDE + BLOCK) == STRIDE + BLOCK, "but it may be all there is"
    sent.num_blocks_sent = 2
    assert pages.limit(STRIDE, END) == STRIDE + CHUNK
    sent.num_blocks_sent = NUM_BLOCKS
    assert pages.limit(STRIDE, END) == 2 * STRIDE, "what is not computed does not count as sent"
    kv.check()


def test_pages_behind_the_window_go_when_they_were_sent_and_can_then_not_be_sent_again() -> None:
    kv = tiny_model("gemma3").kv
    pages, sent = pages_of(kv)
    for first in range(0, END, CHUNK):
        pages.begin(first, first + CHUNK)
        pages.commit(0, (first + CHUNK) // BLOCK)
        sent.num_blocks_sent = (first + CHUNK) // BLOCK
        kv.check()
    passed = (END - CHUNK - 99) // BLOCK  # the window is 100, the last slide was before the last chunk
    sendable = pages.sendable(0)
    assert sendable == [FULL] * passed + [FULL | WINDOWED] * (NUM_BLOCKS - passed)
    kv.release(pages.reservation)
    again, _ = pages_of(kv)
    assert again.reservation.cached_blocks == NUM_BLOCKS
    assert again.sendable(NUM_BLOCKS) == list(again.reservation.cached_layers)


@pytest.mark.parametrize("resume", [0, 5])
def test_a_resume_takes_the_window_before_it_and_a_failed_one_gives_it_back(resume: int) -> None:
    kv = tiny_model("gemma3").kv
    pages, _ = pages_of(kv)
    usage = kv.usage
    pages.take_for_resume(8)
    window = [table for table, group in zip(pages.reservation.tables, kv.groups.groups, strict=True) if group.window]
    assert [[i for i, page in enumerate(table) if page >= 0] for table in window] == [[6, 7]] * 3
    pages.take_for_resume(resume)
    assert all(table[6] < 0 and table[7] < 0 for table in window)
    assert kv.usage == usage
    kv.check()
