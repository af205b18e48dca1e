import pytest

from services.cachepool.serving.batch_size import BATCH_S, LARGEST_BYTES, SMALLEST_BYTES, BatchSize

MIB = 1 << 20


def sent_at(rate: float, num_batches: int = 50, num_connections: int = 1) -> BatchSize:
    """Return what has learned from batches that left one after another at so many bytes a second."""
    size, now = BatchSize(MIB), 10.0
    for _ in range(num_batches):
        num_bytes = size.limit_bytes(num_connections)
        size.begun(now)
        now += num_bytes / rate
        size.ended(num_bytes, now)
    return size


def test_the_first_has_the_size_that_was_given() -> None:
    assert BatchSize(MIB).limit_bytes(4) == MIB


@pytest.mark.parametrize("num_connections", [1, 4])
def test_a_batch_occupies_its_connection_for_the_time_that_is_meant(num_connections: int) -> None:
    rate = 100e6
    limit_bytes = sent_at(rate, num_connections=num_connections).limit_bytes(num_connections)
    assert limit_bytes == pytest.approx(rate / num_connections * BATCH_S, rel=0.05)


def test_it_has_bounds() -> None:
    assert sent_at(10e9).limit_bytes(2) == LARGEST_BYTES
    assert sent_at(1e5).limit_bytes(8) == SMALLEST_BYTES


def test_batches_that_are_sent_at_once_share_their_time() -> None:
    size = BatchSize(MIB)
    size.begun(0.0)
    size.begun(0.0)
    size.ended(MIB, 0.1)
    size.ended(MIB, 0.1)
    assert size.limit_bytes(1) == pytest.approx(2 * MIB / 0.1 * BATCH_S, rel=0.1)


def test_time_in_which_nothing_is_sent_does_not_count() -> None:
    size = sent_at(100e6)
    before = size.limit_bytes(1)
    size.begun(1000.0)
    size.ended(0, 1000.0)
    assert size.limit_bytes(1) == before


def test_a_link_that_becomes_slow_is_believed_within_seconds() -> None:
    size, now = sent_at(1e9, num_batches=500), 100.0
    while now < 103:
        size.begun(now)
        now += MIB / 10e6
        size.ended(MIB, now)
    assert size.limit_bytes(1) < 4 * 10e6 * BATCH_S


def test_a_batch_that_failed_counts_as_time_alone() -> None:
    size = BatchSize(MIB)
    size.begun(0.0)
    size.ended(MIB, 0.1)
    before = size.limit_bytes(1)
    size.begun(0.1)
    size.ended(0, 0.2)
    assert size.limit_bytes(1) < before
