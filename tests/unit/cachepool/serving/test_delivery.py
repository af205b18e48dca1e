"""What one stream does next: it sends what is ready, reports what nobody writes, and is never silent for too long."""

from services.cachepool.serving.delivery import FIRST_BATCH_BYTES, Beat, Delivery, Missing, Send, Wait
from services.cachepool.store.subscription import Subscription
from shared.rpc.convert import MAX_BATCH_BYTES
from tests.support.samples import SamplePool, frame, key, wanting

A, B = key("a"), key("b")
HEARTBEAT_S = 2.0
WAIT_S = 5.0


def delivery(
    pool: SamplePool,
    reader: Subscription,
    heartbeat_s: float | None = None,
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Delivery:
    return Delivery(reader, max_batch_bytes, heartbeat_s, pool.clock())


def test_what_is_ready_goes_at_once_and_the_first_message_is_small() -> None:
    pool = SamplePool()
    pool.fill(A, B)
    stream = delivery(pool, pool.reader(A, B))
    assert stream.next_action(pool.clock()) == Send(FIRST_BATCH_BYTES, None)
    assert stream.next_action(pool.clock()) == Send(MAX_BATCH_BYTES, None)


def test_no_message_is_larger_than_its_link_allows() -> None:
    pool = SamplePool()
    pool.fill(A)
    stream = delivery(pool, pool.reader(A), max_batch_bytes=1000)
    assert stream.next_action(pool.clock()) == Send(1000, None)
    assert stream.next_action(pool.clock()) == Send(1000, None)


def test_a_permit_to_send_is_waited_for_until_the_next_heartbeat_is_due() -> None:
    pool = SamplePool()
    pool.fill(A)
    stream = delivery(pool, pool.reader(A), HEARTBEAT_S)
    pool.clock.advance(0.5)
    assert stream.next_action(pool.clock()) == Send(FIRST_BATCH_BYTES, HEARTBEAT_S - 0.5)


def test_entries_that_somebody_writes_are_waited_for_as_long_as_that_takes() -> None:
    pool = SamplePool()
    writer = pool.writer(A)
    stream = delivery(pool, pool.reader(A))
    assert stream.next_action(pool.clock()) == Wait(None)
    pool.store.put(writer, frame(A, 0))
    assert isinstance(stream.next_action(pool.clock()), Send)


def test_entries_that_nobody_writes_are_waited_for_and_then_reported_once() -> None:
    pool = SamplePool()
    reader = pool.reader(A, wait_s=WAIT_S)
    stream = delivery(pool, reader)
    pool.clock.advance(1.0)
    assert stream.next_action(pool.clock()) == Wait(WAIT_S - 1.0)
    pool.clock.advance(WAIT_S)
    assert stream.next_action(pool.clock()) == Missing(wanting([A]))
    assert reader.done


def test_what_is_ready_goes_before_what_is_missing_is_reported() -> None:
    pool = SamplePool()
    pool.fill(A)
    reader = pool.reader(A, B, wait_s=WAIT_S)
    stream = delivery(pool, reader)
    pool.clock.advance(2 * WAIT_S)
    assert isinstance(stream.next_action(pool.clock()), Send)
    reader.take(MAX_BATCH_BYTES)
    assert stream.next_action(pool.clock()) == Missing(wanting([B]))


def test_a_stream_that_has_nothing_says_so_within_its_heartbeat() -> None:
    pool = SamplePool()
    pool.writer(A)
    stream = delivery(pool, pool.reader(A), HEARTBEAT_S)
    assert stream.next_action(pool.clock()) == Wait(HEARTBEAT_S)
    pool.clock.advance(HEARTBEAT_S)
    assert stream.next_action(pool.clock()) == Beat()
    stream.spoke(pool.clock())
    assert stream.next_action(pool.clock()) == Wait(HEARTBEAT_S)


def test_a_heartbeat_that_is_due_goes_before_anything_else() -> None:
    pool = SamplePool()
    pool.fill(A)
    stream = delivery(pool, pool.reader(A), HEARTBEAT_S)
    pool.clock.advance(HEARTBEAT_S)
    assert stream.next_action(pool.clock()) == Beat()
    stream.spoke(pool.clock())
    assert stream.next_action(pool.clock()) == Send(FIRST_BATCH_BYTES, HEARTBEAT_S)


def test_a_wait_ends_with_the_earlier_of_heartbeat_and_deadline() -> None:
    pool = SamplePool()
    stream = delivery(pool, pool.reader(A, wait_s=WAIT_S), HEARTBEAT_S)
    assert stream.next_action(pool.clock()) == Wait(HEARTBEAT_S)
    pool.clock.advance(WAIT_S - 1.0)
    stream.spoke(pool.clock())
    assert stream.next_action(pool.clock()) == Wait(1.0)


def test_a_message_of_one_stream_does_not_break_the_silence_of_another_on_the_same_reader() -> None:
    pool = SamplePool()
    pool.fill(A)
    reader = pool.reader(A, B, wait_s=2 * WAIT_S)
    quick, slow = delivery(pool, reader, HEARTBEAT_S), delivery(pool, reader, HEARTBEAT_S)
    pool.clock.advance(HEARTBEAT_S)
    reader.take(MAX_BATCH_BYTES)
    quick.spoke(pool.clock())
    assert quick.next_action(pool.clock()) == Wait(HEARTBEAT_S)
    assert slow.next_action(pool.clock()) == Beat()
