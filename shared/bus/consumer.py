"""Reading whole topics: every partition, no groups, no commits; notices a log that was lost or replaced."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, UnknownTopicOrPartitionError

from shared.bus.connection import Connection
from shared.errors import BadEvent
from shared.log import REQUEST_ID_KEY, bound_request, get_logger, request_id_or_new
from shared.telemetry.tracing import linked

log = get_logger()

# Tansu does not wake a waiting fetch when data comes, so the wait is what an event's way takes at most. An idle
# reader of three topics costs the embedded broker 4 % of a core at 100 ms, 0.5 % at 500.
_FETCH_MAX_WAIT_MS = 100
_POLL_MS = 200
_POLL_RECORDS = 500
_REQUEST_TIMEOUT_MS = 3000
_RETRY_AFTER_S = 0.2


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass
class _Cursor:
    """Where reading a partition has come to, and how to tell that it is still the same log."""

    position: int  # offset of the next record to handle
    fingerprint: int | None = None  # of the record at position - 1
    checked: bool = False  # whether this connection has shown that record again

    @property
    def seek_to(self) -> int:
        """One record back: read again, compared, and not handled again."""
        return max(0, self.position - 1)


class Consumer:
    """Hands each record of its topics to `handler`, in order within a partition; made for topics read by everybody.

    Kafka in memory forgets everything in a restart, and offsets start again. After each reconnection the last record
    that was handled is read again and compared; when it differs, or the log is shorter than it was, the topic is read
    from its beginning and `on_reset(topic)` is called first. A handler that raises costs that one record.
    """

    def __init__(
        self,
        bus: Connection,
        topics: Sequence[str],
        handler: Callable[[Record], Awaitable[None]],
        *,
        from_beginning: bool,
        on_reset: Callable[[str], None] | None = None,
    ) -> None:
        self.caught_up = asyncio.Event()
        self._bus = bus
        self._topics = tuple(topics)
        self._handler = handler
        self._from_beginning = from_beginning
        self._on_reset = on_reset
        self._cursors: dict[TopicPartition, _Cursor] = {}

    async def run(self) -> None:
        """Read for ever; meant for `background()`."""
        while True:
            generation = await self._bus.wait_connected()
            try:
                await self._read(generation)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("consume_retried", error=repr(error), topics=self._topics)
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _read(self, generation: int) -> None:
        """Read until the connection of this generation is over."""
        client = AIOKafkaConsumer(
            bootstrap_servers=self._bus.bootstrap,
            client_id=self._bus.client_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            **vars(self._bus.security),
        )
        try:
            await client.start()
            await self._assign(client)
            while self._bus.is_current(generation):
                await self._poll(client, generation)
        finally:
            await self._bus.close_client(client.stop())

    async def _assign(self, client: Any) -> None:
        """Take all partitions of the topics as they are now and resume each where it was left."""
        unknown = [topic for topic in self._topics if not client.partitions_for_topic(topic)]
        if unknown:  # created a moment ago, and not yet known to the broker that was asked
            raise UnknownTopicOrPartitionError(str(unknown))
        partitions = [
            TopicPartition(topic, number)
            for topic in self._topics
            for number in sorted(client.partitions_for_topic(topic))
        ]
        replaced = self._forget_replaced(partitions)
        client.assign(partitions)
        fresh = [tp for tp in partitions if tp not in self._cursors]
        whole = [tp for tp in fresh if self._from_beginning or tp.topic in replaced]
        for bounds, chosen in (
            (client.beginning_offsets, whole),
            (client.end_offsets, [tp for tp in fresh if tp not in whole]),
        ):
            for tp, offset in (await bounds(chosen)).items() if chosen else ():
                self._cursors[tp] = _Cursor(offset)
        for tp in partitions:
            cursor = self._cursors[tp]
            cursor.checked = cursor.position == 0 or tp in whole
            client.seek(tp, cursor.position if cursor.checked else cursor.seek_to)

    def _forget_replaced(self, partitions: Sequence[TopicPartition]) -> set[str]:
        """Find topics that have other partitions than before, announce them and begin anew; return their names.

        A broker that has forgotten a topic makes it again, its own way, for whoever asks: a client of the connection
        before, which still hopes. What is in partitions that are new would else be read before the reset.
        """
        known = {tp.topic for tp in self._cursors}
        replaced = {tp.topic for tp in self._cursors.keys() ^ set(partitions)} & known
        for tp in [tp for tp in self._cursors if tp.topic in replaced]:
            del self._cursors[tp]
        for topic in sorted(replaced):
            log.warning("log_replaced", topic=topic)
            self._announce_reset(topic)
        return replaced

    async def _poll(self, client: Any, generation: int) -> None:
        try:
            batches = await client.getmany(timeout_ms=_POLL_MS, max_records=_POLL_RECORDS)
        except OffsetOutOfRangeError as error:
            (offsets,) = error.args
            for tp in offsets if self._bus.is_current(generation) else ():
                await self._start_over(client, tp)
            return
        if not self._bus.is_current(generation):
            return  # aiokafka reconnects on its own: these records may already be from a new broker's other log
        for tp, records in batches.items():
            for record in records:
                if not self._is_same_log(tp, record):
                    await self._start_over(client, tp)
                    break
                await self._take(tp, record)
        await self._compare_ends(client)

    def _is_same_log(self, tp: TopicPartition, record: Any) -> bool:
        """Compare the first record of a connection with the one that stood there before."""
        cursor = self._cursors[tp]
        if cursor.checked:
            return True
        cursor.checked = True
        if cursor.fingerprint is None:  # reading began at the end of the log: nothing was seen of it yet
            if record.offset == cursor.position - 1:
                cursor.fingerprint = _fingerprint(record)
            return True
        return bool(record.offset == cursor.position - 1) and _fingerprint(record) == cursor.fingerprint

    async def _take(self, tp: TopicPartition, record: Any) -> None:
        cursor = self._cursors[tp]
        if record.offset < cursor.position:
            return
        if record.value is not None:
            await self._handle(_record(record))
        cursor.position = record.offset + 1  # after the effect, so that a cancelled handler sees the record again
        cursor.fingerprint = _fingerprint(record)

    async def _handle(self, record: Record) -> None:
        request_id = dict(record.headers).get(REQUEST_ID_KEY)
        bound = bound_request(request_id_or_new(request_id.decode("ascii", "replace"))) if request_id else nullcontext()
        about = {"messaging.system": "kafka", "messaging.destination.name": record.topic}
        with bound, linked(f"process {record.topic}", record.headers, about):
            try:
                await self._handler(record)
            except Exception as error:
                counter = self._bus.instruments.skipped
                known = isinstance(error, BadEvent)  # anything else is a bug of the handler: show where
                log.warning(
                    "event_skipped",
                    topic=record.topic,
                    offset=record.offset,
                    error=str(error),
                    exc_info=None if known else error,
                )
            else:
                counter = self._bus.instruments.consumed
        counter.labels(record.topic).inc()

    async def _compare_ends(self, client: Any) -> None:
        """Find logs that are shorter than what was read of them, and see whether everything has been read."""
        at_end = True
        for tp, cursor in list(self._cursors.items()):
            end = client.highwater(tp)
            if end is not None and end < cursor.position:
                await self._start_over(client, tp)
                at_end = False
            at_end = at_end and end is not None and end == cursor.position
        if at_end and self._cursors:
            self.caught_up.set()

    async def _start_over(self, client: Any, tp: TopicPartition) -> None:
        log.warning("log_replaced", topic=tp.topic, partition=tp.partition, position=self._cursors[tp].position)
        begin = (await client.beginning_offsets([tp]))[tp]
        self._cursors[tp] = _Cursor(begin, checked=True)
        client.seek(tp, begin)
        self._announce_reset(tp.topic)

    def _announce_reset(self, topic: str) -> None:
        self._bus.instruments.resets.labels(topic).inc()
        if self._on_reset is not None:
            self._on_reset(topic)


def _fingerprint(record: Any) -> int:
    return hash((record.offset, record.timestamp, record.key, record.value))


def _record(record: Any) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=(record.key or b"").decode("utf-8", "replace"),
        value=record.value,
        headers=tuple(record.headers or ()),
    )
