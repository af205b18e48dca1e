"""Publishing: a bounded queue that callers never wait for, delivered in order by a loop that never gives up."""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from shared.bus.connection import Connection, ConnectionLostError
from shared.log import REQUEST_ID_KEY, current_request_id, get_logger
from shared.telemetry.spans import current_span

log = get_logger()

Headers = tuple[tuple[str, bytes], ...]

_BATCH_EVENTS = 500
_RETRY_AFTER_S = 0.2
_REQUEST_TIMEOUT_MS = 3000

# No broker will ever take such an event; everything else is a broker's passing trouble.
_REFUSALS = (
    CorruptRecordException,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)


class _Outgoing(NamedTuple):
    topic: str
    key: bytes
    value: bytes | None
    headers: Headers


class Producer:
    """Delivers at least once and in order of `publish`, as long as the queue holds; duplicates follow a broken send.

    Readers order events by epoch and sequence and heal gaps by snapshot, so an event that does not fit is dropped and
    counted rather than made to block the request that caused it.
    """

    def __init__(self, bus: Connection, capacity: int) -> None:
        self.bus = bus
        self._capacity = capacity
        self._queue: deque[_Outgoing] = deque()
        self._available = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, topic: str, key: str, value: bytes | None, headers: Headers = ()) -> bool:
        """Queue an event and return at once; False when the queue is full. A value of None is a tombstone."""
        if len(self._queue) >= self._capacity:
            self.bus.instruments.dropped.labels(topic).inc()
            return False
        request_id = current_request_id()
        if request_id is not None:
            headers = (*headers, (REQUEST_ID_KEY, request_id.encode()))
        if (span := current_span()).is_recording:
            headers = (*headers, *((name, value.encode()) for name, value in span.carrier))
        self._queue.append(_Outgoing(topic, key.encode(), value, headers))
        self._empty.clear()
        self._available.set()
        return True

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far has left; False when that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Deliver for ever; meant for `background()`."""
        while True:
            try:
                async with self.bus.scope():
                    await self._deliver_all()
            except ConnectionLostError:
                continue
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("publish_retried", error=repr(error), num_queued=len(self._queue))
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _deliver_all(self) -> None:
        client = AIOKafkaProducer(
            bootstrap_servers=self.bus.bootstrap,
            client_id=self.bus.client_id,
            acks="all",
            linger_ms=1,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            **vars(self.bus.security),
        )
        try:
            await client.start()
            while True:
                await self._available.wait()
                await self._deliver_batch(client)
        finally:
            await self.bus.close_client(client.stop())

    async def _deliver_batch(self, client: Any) -> None:
        """Send the head of the queue; what was acknowledged leaves it. Raises the first error worth a retry."""
        batch = [self._queue[index] for index in range(min(_BATCH_EVENTS, len(self._queue)))]
        sends: list[asyncio.Future[Any]] = []
        try:
            for event in batch:
                sends.append(await _started(client, event))  # noqa: PERF401 - what was sent must be known below
            results = await asyncio.gather(*sends, return_exceptions=True)
        finally:
            for send in sends:
                send.cancel()
        for event, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, _REFUSALS):
                raise result
            self._queue.popleft()
            if isinstance(result, BaseException):
                log.error("event_dropped", topic=event.topic, error=repr(result))
                self.bus.instruments.dropped.labels(event.topic).inc()
            else:
                self.bus.instruments.published.labels(event.topic).inc()
        if not self._queue:
            self._available.clear()
            self._empty.set()


async def _started(client: Any, event: _Outgoing) -> "asyncio.Future[Any]":
    try:
        acknowledged: asyncio.Future[Any] = await client.send(
            event.topic, event.value, key=event.key, headers=list(event.headers)
        )
    except KafkaError as error:
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_exception(error)
    return acknowledged
