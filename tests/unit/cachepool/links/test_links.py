"""Links without a network: how a pull is dealt out, who may send, what is counted."""

import pytest

from services.cachepool.links.links import (
    ASSUMED_BYTES_PER_S,
    MAX_DATACENTERS,
    MIN_STREAM_BLOCKS,
    PoolLinks,
    channel_ids,
)
from shared.errors import BadRequest
from shared.ids import Datacenter
from shared.metrics import Metrics
from shared.rpc.convert import MAX_BATCH_BYTES
from shared.rpc.options import ChannelId
from tests.support.samples import ENTRY_BYTES, ManualClock, frame, key

EAST, WEST = Datacenter("east"), Datacenter("west")


@pytest.mark.parametrize(
    ("num_blocks", "num_streams"), [(1, 1), (MIN_STREAM_BLOCKS, 1), (MIN_STREAM_BLOCKS + 1, 2), (1000, 8)]
)
def test_few_blocks_take_few_streams(num_blocks: int, num_streams: int) -> None:
    used = channel_ids(num_blocks, 8, is_background=True)
    assert used == [ChannelId(number, is_background=True) for number in range(num_streams)]


def test_streams_at_home_need_no_permit_and_are_not_counted() -> None:
    links = PoolLinks(WEST, Metrics(), lambda: 0.0)
    assert not links.sender("", is_background=True).is_background
    assert type(links.sender("west", is_background=False)) is not type(links.sender("east", is_background=False))


def test_what_is_remembered_of_foreign_names_is_bounded() -> None:
    links = PoolLinks(WEST, Metrics(), lambda: 0.0)
    for number in range(MAX_DATACENTERS):
        links.sender(f"dc{number}", is_background=False)
    links.sender("dc0", is_background=False)
    with pytest.raises(BadRequest):
        links.sender("one more", is_background=False)


def test_a_link_that_is_slow_or_shared_may_be_silent_for_longer() -> None:
    links = PoolLinks(WEST, Metrics(), lambda: 0.0)
    with links.receiver(WEST, "w:1") as at_home:
        assert at_home.patience_s(6.0) == 6.0
    with links.receiver(EAST, "e:1") as one:
        alone_s = one.patience_s(6.0)
        assert alone_s == 6.0 + 2 * MAX_BATCH_BYTES / ASSUMED_BYTES_PER_S
        with links.receiver(EAST, "e:1") as other:
            assert one.patience_s(6.0) == alone_s
            for receiver in (one, other):
                receiver.arrived([frame(key("block"), 0)])
            assert one.patience_s(6.0) - 6.0 == pytest.approx(2 * (alone_s - 6.0))
            other.arrived([])  # a heartbeat: it waits, and takes nothing of the link
            assert one.patience_s(6.0) == alone_s
            other.arrived([frame(key("block"), 1)])
        assert one.patience_s(6.0) == alone_s


def test_the_patience_follows_the_measured_speed() -> None:
    clock = ManualClock()
    links = PoolLinks(WEST, Metrics(), clock)
    sizes = MAX_BATCH_BYTES // ENTRY_BYTES
    full = [frame(key("block"), 0)] * sizes
    with links.receiver(EAST, "e:1") as receiver:
        for _ in range(3):
            receiver.arrived(full)
            clock.advance(0.25)
        speed = links.loads(lambda _dc: 0)[0].goodput_bytes_per_s
        assert speed == pytest.approx(4 * MAX_BATCH_BYTES, rel=0.1)
        assert receiver.patience_s(6.0) == 6.0 + 2 * MAX_BATCH_BYTES / speed
