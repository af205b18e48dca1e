"""What services use of Kafka: one `Bus` for each process, which makes producers and consumers."""

from collections.abc import Awaitable, Callable, Sequence

from shared.bus.connection import TOPICS, Connection, Topic, topics_with_copies
from shared.bus.consumer import Consumer, Record
from shared.bus.producer import Producer

__all__ = ["TOPICS", "Bus", "Consumer", "Producer", "Record", "Topic", "topics_with_copies"]


class Bus(Connection):
    """A connection and what hangs on it. Its `run`, and that of each producer and consumer, go into `background()`."""

    def producer(self, capacity: int = 4096) -> Producer:
        return Producer(self, capacity)

    def consumer(
        self,
        topics: Sequence[str],
        handler: Callable[[Record], Awaitable[None]],
        *,
        from_beginning: bool,
        on_reset: Callable[[str], None] | None = None,
    ) -> Consumer:
        return Consumer(self, topics, handler, from_beginning=from_beginning, on_reset=on_reset)
