"""Where a consumer begins to read, and what it takes for a topic that was replaced."""

from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition

from shared.bus.consumer import Consumer, Record
from shared.bus.kafka import Bus


class Client:
    """A Kafka client that only says how many partitions each topic has, and how long they are."""

    def __init__(self, **num_partitions: int) -> None:
        self.num_partitions = num_partitions
        self.position: dict[TopicPartition, int] = {}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self.num_partitions[topic]))

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.position = {}

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 9)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.position[partition] = offset


async def ignore(_record: Record) -> None:
    pass


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
async def test_a_topic_with_other_partitions_was_replaced_and_is_read_from_its_beginning(
    before: int, after: int
) -> None:
    resets: list[str] = []
    consumer = Consumer(Bus("nowhere:1", "test"), ["a", "b"], ignore, from_beginning=False, on_reset=resets.append)
    await consumer._assign(client := Client(a=before, b=1))
    assert set(client.position.values()) == {8}, "at the end, and the last record once more"
    await consumer._assign(client := Client(a=before, b=1))
    assert resets == []
    await consumer._assign(client := Client(a=after, b=1))
    assert resets == ["a"]
    assert client.position == {**{TopicPartition("a", n): 0 for n in range(after)}, TopicPartition("b", 0): 8}
