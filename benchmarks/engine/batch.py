"""A decode batch that is running, and the seconds between its tokens."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.engine.node import Answer, DecodeNode
from shared.sampling.constraint import Constraint

JOIN_STEPS = 96
"""Steps that a batch gets to come together: prompts' ends are computed beside those that run already."""

_TIMEOUT_S = 300.0


class RunningBatch:
    """Answers that are being generated side by side."""

    def __init__(self, answers: Sequence[Answer], arrived: asyncio.Event) -> None:
        """`arrived` is set whenever an answer gets a token."""
        self._tokens_at_s = answers[0].token_at_s
        self._arrived = arrived

    async def steps(self, count: int) -> list[float]:
        """Return the seconds of the next `count` steps, once they are done."""
        first = len(self._tokens_at_s)
        await _until(lambda: len(self._tokens_at_s) > first + count, self._arrived)
        return self._between(first, first + count)

    def mark(self) -> int:
        """Return the number of the step in hand, for `since`."""
        return len(self._tokens_at_s) - 1

    def since(self, mark: int) -> list[float]:
        """Return the seconds of all steps from `mark` to now."""
        return self._between(mark, len(self._tokens_at_s) - 1)

    def _between(self, first: int, last: int) -> list[float]:
        at = self._tokens_at_s[first : last + 1]
        return [later - earlier for earlier, later in itertools.pairwise(at)]


@asynccontextmanager
async def running_batch(
    node: DecodeNode, prompts: Sequence[list[int]], steps: int, constraint: Constraint | None = None
) -> AsyncIterator[RunningBatch]:
    """One answer to each prompt, all of them running, with at least `steps` more steps in each."""
    for prompt in prompts:  # computed one by one, found in the pages again below: the batch comes together fast
        await node.generate(prompt, 1)
    arrived = asyncio.Event()
    answers = [Answer(time.perf_counter(), arrived) for _ in prompts]
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(node.generate(prompt, JOIN_STEPS + steps, answer=answer, constraint=constraint))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        try:
            await _until(lambda: all(answer.token_at_s for answer in answers), arrived)
            yield RunningBatch(answers, arrived)
        finally:
            for task in running:
                task.cancel()


async def _until(holds: Callable[[], bool], arrived: asyncio.Event) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while not holds():
            arrived.clear()
            await arrived.wait()
