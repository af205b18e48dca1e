"""Pages in host memory: bytes are read and written in place."""

from collections.abc import Iterator, Sequence

import torch

from shared.engine.stage.stager import Arrival, Departure, Digests, Mark, Stager, layers
from shared.kv.codec import Payload
from shared.kv.payloads import copy_in, copy_in_sealed, copy_out
from shared.kv.tensors import entry_rows


class HostStager(Stager):
    """Copies in the caller's thread, in one call for each layer; a layer that has returned is complete."""

    def mark(self) -> None:
        return None

    def reached(self, mark: Mark) -> None:
        return None

    def is_reached(self, mark: Mark) -> bool:
        return True

    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        rows = entry_rows(blocks)
        for number in numbers:
            yield rows[:, number].tobytes()

    def place(self, departures: Sequence[Departure], digest: Digests) -> list[list[int]]:
        """Digest entries as they are copied, so that `digest` is not needed."""
        return [
            copy_out(entry_rows(blocks), numbers, slots, headers) for _, blocks, numbers, slots, headers in departures
        ]

    def land(self, arrivals: Sequence[Arrival]) -> None:
        for first, end in layers(arrivals):
            raws, blocks, numbers = zip(*arrivals[first:end], strict=True)
            copy_in(entry_rows(blocks[0]), numbers, raws)

    def land_sealed(
        self, arrivals: Sequence[Arrival], headers: Sequence[bytes], checksums: Sequence[int], digest: Digests
    ) -> list[bool]:
        """Digest an entry and copy it while it is in the processor's cache, so that `digest` is not needed."""
        intact: list[bool] = []
        for first, end in layers(arrivals):
            raws, blocks, numbers = zip(*arrivals[first:end], strict=True)
            intact += copy_in_sealed(entry_rows(blocks[0]), numbers, raws, headers[first:end], checksums[first:end])
        return intact
