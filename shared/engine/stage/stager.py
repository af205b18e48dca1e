"""KV between the device's pages and bytes on the host: what publishing and fetching know of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch

from shared.kv.codec import Payload

Mark: TypeAlias = torch.cuda.Event | None
"""A point in the device's work; None: everything up to it is complete already."""

Digests: TypeAlias = Callable[[Sequence[bytes], Sequence[Payload]], list[int]]
"""`shared.kv.payloads.digests`, or what does the same in several threads."""


class Arrival(NamedTuple):
    """An entry's bytes, part by part, and where they go."""

    raw: Payload
    blocks: torch.Tensor  # of its layer, as `PagedKv.blocks_of` returns them; the same object for neighbours is quicker
    number: int


class Departure(NamedTuple):
    """Entries of one layer, complete from `mark` on, and the slots of exactly their length that they go to."""

    mark: Mark
    blocks: torch.Tensor  # of the layer, as `PagedKv.blocks_of` returns them
    numbers: Sequence[int]
    slots: Sequence[memoryview]
    headers: Sequence[bytes]  # what is digested with them


class Stager(ABC):
    """Moves entries out of pages and into pages while the model goes on computing with others.

    `mark` and `reached` belong to the thread that computes, `stage`, `place` and `land` to one other thread. Where they
    are told `blocks`, it is what `PagedKv.blocks_of` returns, and `numbers` say which of them.
    """

    @abstractmethod
    def mark(self) -> Mark:
        """Return a mark that is reached when everything submitted so far has been computed."""

    @abstractmethod
    def reached(self, mark: Mark) -> None:
        """Block until a mark is reached."""

    @abstractmethod
    def is_reached(self, mark: Mark) -> bool:
        """Return whether a mark is reached, at once and in any thread."""

    @abstractmethod
    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        """Yield the bytes of some of a layer's blocks, part by part, as they are once `mark` is reached.

        The iterator may be closed early. What it yields is the caller's for as long as it likes; a view keeps up to
        `PIECE_BYTES` of host memory.
        """

    @abstractmethod
    def place(self, departures: Sequence[Departure], digest: Digests) -> list[list[int]]:
        """Write the bytes that `stage` would yield into slots; return the digests of each departure's.

        All is written when the call returns, and nothing is written any more when it raises.
        """

    @abstractmethod
    def land(self, arrivals: Sequence[Arrival]) -> None:
        """Write entries into pages that nothing submitted reads or writes. What is submitted afterwards finds them."""

    @abstractmethod
    def land_sealed(
        self, arrivals: Sequence[Arrival], headers: Sequence[bytes], checksums: Sequence[int], digest: Digests
    ) -> list[bool]:
        """As `land`, but only of entries whose `digest` with their header is their checksum; return which these are.

        No byte of another reaches the pages.
        """


def layers(arrivals: Sequence[Arrival]) -> Iterator[tuple[int, int]]:
    """Divide arrivals into ranges of one layer each."""
    first = 0
    for i, arrival in enumerate(arrivals):
        if arrival.blocks is not arrivals[first].blocks:
            yield first, i
            first = i
    if arrivals:
        yield first, len(arrivals)
