"""Copies our topics between brokers, as MirrorMaker's source connector does under its default policy.

`python -m tests.support.mirror SOURCE-ALIAS SOURCE-BROKER TARGET-BROKER` copies until it is ended.
"""

import asyncio
import sys
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from shared.bus.kafka import TOPICS
from shared.bus.mirrors import copy_name

RETRY_AFTER_S = 0.2


async def mirror(source: str, from_broker: str, to_broker: str) -> None:
    """Copy each record, tombstones included: key, value, headers, partition and time stay, the name gets a prefix.

    Copies of copies are not made: the topics are named, as by `topicsPattern`.
    """
    while True:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=from_broker, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=to_broker)
        try:
            await consumer.start()
            await producer.start()
            await _copy(consumer, producer, source)
        except (KafkaError, OSError):
            await asyncio.sleep(RETRY_AFTER_S)
        finally:
            await consumer.stop()
            await producer.stop()


async def _copy(consumer: Any, producer: Any, source: str) -> None:
    names = [topic.name for topic in TOPICS]
    while not all(consumer.partitions_for_topic(name) for name in names):
        await asyncio.sleep(RETRY_AFTER_S)
        await consumer._client.force_metadata_update()
    consumer.assign([TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name)])
    async for record in consumer:
        await producer.send(
            copy_name(source, record.topic),
            record.value,
            key=record.key,
            partition=record.partition,
            timestamp_ms=record.timestamp,
            headers=list(record.headers),
        )


if __name__ == "__main__":
    asyncio.run(mirror(*sys.argv[1:4]))
