"""The connection to Kafka: notices at once when the broker is away, and creates our topics whenever it is back."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, TOPIC_PLACEMENT
from shared.bus.mirrors import copy_name
from shared.log import get_logger
from shared.metrics import Metrics
from shared.security.kafka import KafkaSecurity
from shared.service.health import Health

log = get_logger()

CONDITION = "kafka"
REQUEST_TIMEOUT_S = 3.0
CHECK_EVERY_S = 5.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 1.0

MAX_REPLICAS = 3
"""Of a topic that we create, where there are as many brokers: the loss of one then stops nobody."""


class ConnectionLostError(Exception):
    """The connection went away under `Connection.scope`. Never leaves this package."""


@dataclass(frozen=True)
class Topic:
    """One partition: a holder's events must stay in order, and every gateway reads everything anyway."""

    name: str
    config: dict[str, str] = field(default_factory=dict)
    num_partitions: int = 1


TOPICS = (
    Topic(TOPIC_PLACEMENT, {"retention.ms": str(3_600_000)}),
    Topic(TOPIC_MEMBERSHIP, {"cleanup.policy": "compact"}),
    Topic(TOPIC_LOAD, {"retention.ms": str(600_000)}),
)


def topics_with_copies(sources: Sequence[str]) -> tuple[Topic, ...]:
    """Return our topics, and those that MirrorMaker copies from the brokers of `sources`."""
    copies = (replace(topic, name=copy_name(source, topic.name)) for source in sources for topic in TOPICS)
    return (*TOPICS, *copies)


class Connection:
    """One process's view of the brokers. `run` keeps it true; producers and consumers follow it.

    A bare TCP connection to the broker serves as a tripwire: it breaks the moment the broker dies, before aiokafka's
    own reconnecting could write to a new broker that lacks our topics, or has them with another history.
    """

    def __init__(
        self,
        bootstrap: str,
        client_id: str,
        security: KafkaSecurity | None = None,
        *,
        health: Health | None = None,
        metrics: Metrics | None = None,
        topics: Sequence[Topic] = TOPICS,
    ) -> None:
        self.bootstrap = bootstrap
        self.client_id = client_id
        self.security = security or KafkaSecurity()
        self.generation = 0  # grows with each successful (re)connection
        self.instruments = Instruments(metrics or Metrics())
        self._topics = topics
        self._health = health
        self._connected = asyncio.Event()
        self._lives: set[asyncio.Timeout] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._note(ok=False, detail=f"not connected to {bootstrap}")

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost, for ever."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                async with self._tripwire() as broken:
                    await self.ensure_topics()
                    self._on_connected()
                    backoff_s = BACKOFF_FIRST_S
                    await self._watch(broken)
            except (OSError, TimeoutError, KafkaError) as error:
                self._on_lost(f"{self.bootstrap}: {str(error) or type(error).__name__}")
            else:
                self._on_lost(f"{self.bootstrap} closed the connection")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def ensure_topics(self) -> None:
        """Create the topics that the broker does not have; idempotent. Raises KafkaError, OSError or TimeoutError."""
        async with self._admin() as admin:
            known = set(await admin.list_topics())
            absent = [topic for topic in self._topics if topic.name not in known]
            if not absent:
                return
            num_copies = min(MAX_REPLICAS, len((await admin.describe_cluster())["brokers"]))
            reply = await admin.create_topics(
                [NewTopic(t.name, t.num_partitions, num_copies, topic_configs=t.config) for t in absent]
            )
        for name, code, *_ in reply.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:  # another service of the suite was faster
                raise error(f"topic {name} could not be created")
        log.info("topics_created", topics=[topic.name for topic in absent])

    async def wait_connected(self) -> int:
        """Wait for a connection; return its generation."""
        await self._connected.wait()
        return self.generation

    def is_current(self, generation: int) -> bool:
        """Tell whether the connection of that generation has held all the time since."""
        return self.connected and self.generation == generation

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[int]:
        """Wait for a connection and run the body on it; once it is lost, cancel the body, raise ConnectionLostError."""
        generation = await self.wait_connected()
        life = asyncio.timeout(None)
        try:
            async with life:
                self._lives.add(life)
                try:
                    yield generation
                finally:
                    self._lives.discard(life)
        except TimeoutError:
            if not life.expired():
                raise
            raise ConnectionLostError from None

    async def close_client(self, stop: Coroutine[Any, Any, None], limit_s: float = 0.5) -> None:
        """Stop an aiokafka client; one that still hopes for its broker goes on stopping without holding us up."""
        task = asyncio.create_task(stop, name="kafka-client-stop")
        self._closing.add(task)
        task.add_done_callback(self._closed)
        await asyncio.wait({task}, timeout=limit_s)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("kafka_client_stop_failed", error=repr(error))

    @asynccontextmanager
    async def _tripwire(self) -> AsyncIterator[asyncio.StreamReader]:
        errors: list[str] = []
        for server in self.bootstrap.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(
                        host.strip("[]"), int(port), ssl=self.security.ssl_context
                    )
            except (OSError, TimeoutError, ValueError) as error:
                errors.append(f"{server.strip()}: {error!r}")
                continue
            try:
                yield reader
            finally:
                writer.transport.abort()
            return
        raise ConnectionError("; ".join(errors))

    async def _watch(self, broken: asyncio.StreamReader) -> None:
        """Return when the tripwire breaks; look now and then whether the broker answers and has our topics."""
        while True:
            try:
                async with asyncio.timeout(CHECK_EVERY_S):
                    await broken.read(1)
                    return
            except TimeoutError:
                await self.ensure_topics()

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self.bootstrap,
            client_id=self.client_id,
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
            **vars(self.security),
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await admin.start()
                yield admin
        finally:
            await self.close_client(admin.close())

    def _on_connected(self) -> None:
        self.generation += 1
        self._connected.set()
        self.instruments.connections.inc()
        log.info("kafka_connected", bootstrap=self.bootstrap, generation=self.generation)
        self._note(ok=True, detail=f"connected to {self.bootstrap}")

    def _on_lost(self, why: str) -> None:
        if self._connected.is_set():
            log.warning("kafka_lost", error=why)
        self._connected.clear()
        for life in self._lives:
            if not life.expired():
                life.reschedule(asyncio.get_running_loop().time())
        self._note(ok=False, detail=why)

    def _note(self, *, ok: bool, detail: str) -> None:
        if self._health is not None:
            self._health.set(CONDITION, ok, detail)


class Instruments:
    """The counters that all producers and consumers of one connection share."""

    def __init__(self, metrics: Metrics) -> None:
        self.connections = metrics.counter("kafka_connections", "Times that a connection was made.")
        self.published = metrics.counter("kafka_events_published", "Events that the broker acknowledged.", ["topic"])
        self.dropped = metrics.counter("kafka_events_dropped", "Events given up: overflow or refused.", ["topic"])
        self.consumed = metrics.counter("kafka_events_consumed", "Events handled.", ["topic"])
        self.skipped = metrics.counter("kafka_events_skipped", "Events whose handler failed: poison.", ["topic"])
        self.resets = metrics.counter("kafka_log_resets", "Logs found lost or replaced.", ["topic"])
