"""Which decode worker has a prompt's beginning on its device: the one that served it last. A guess that costs nothing.

Engines keep finished requests' pages as a cache and tell nobody. A conversation's next turn begins with its last one,
so that it is enough to remember where prompts ended.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from shared.ids import BlockKey, WorkerId

MAX_PROMPTS = 65_536
"""Prompts that are remembered, at about 200 bytes each; devices hold fewer."""

MAX_BLOCKS_BACK = 512
"""How much longer than an earlier prompt a new one may be to be recognised: 32,768 tokens of 64 a block."""


class OnDevice(NamedTuple):
    """Leading blocks of a prompt that lie on a decode worker's device, most likely."""

    worker: WorkerId
    num_blocks: int


class ServedPrompts:
    """Where prompts were served, by their last whole block; the latest of them are remembered."""

    def __init__(self, max_prompts: int = MAX_PROMPTS) -> None:
        self._max_prompts = max_prompts
        self._workers: OrderedDict[BlockKey, WorkerId] = OrderedDict()

    def note(self, keys: Sequence[BlockKey], worker: WorkerId) -> None:
        """Note who has served the prompt of these blocks, all of a chain."""
        if not keys:
            return
        self._workers[keys[-1]] = worker
        self._workers.move_to_end(keys[-1])
        if len(self._workers) > self._max_prompts:
            self._workers.popitem(last=False)

    def longest(self, keys: Sequence[BlockKey]) -> OnDevice | None:
        """Return where the longest known beginning of a prompt was served."""
        for num_blocks in range(len(keys), max(0, len(keys) - MAX_BLOCKS_BACK), -1):
            if (worker := self._workers.get(keys[num_blocks - 1])) is not None:
                return OnDevice(worker, num_blocks)
        return None
