"""A decode and a prefill worker without a model, in a process of their own: canned tokens, at the pace asked for."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import (
    DecodeServicer,
    PrefillServicer,
    add_DecodeServicer_to_server,
    add_PrefillServicer_to_server,
)
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight

BLOCK_TOKENS = 64
STEP_S = 0.01
"""Between two tokens of a stream. All streams get their tokens at once, as from the steps of one batch."""

FIRST_WORD_ID, NUM_WORDS = 1000, 4000
"""Ids whose text is a word or a part of one, in the vocabularies of both built-in models."""


class Steps:
    """A clock that all streams wait for together."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            passed, self._next = self._next, asyncio.Event()
            passed.set()

    async def next(self) -> None:
        await self._next.wait()


class CannedWorker(DecodeServicer, PrefillServicer):
    """Answers at once; the second and later tokens of an answer come with the steps."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._num_answered = 0

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.Control], context: Any
    ) -> AsyncIterator[pb.Tokens]:
        start = (await anext(aiter(request_iterator))).start
        num_tokens = start.sampling.max_tokens
        tail = len(start.token_ids) - BLOCK_TOKENS * start.num_blocks
        self._num_answered += 1
        for number in range(num_tokens):
            if number:
                await self._steps.next()
            yield pb.Tokens(
                ids=[FIRST_WORD_ID + (self._num_answered * 31 + number * 7) % NUM_WORDS],
                finish_reason=pb.FINISH_REASON_LENGTH if number == num_tokens - 1 else pb.FINISH_REASON_UNSPECIFIED,
                computed_prompt_tokens=max(1, tail) if number == 0 else 0,
            )

    async def Prefill(self, request: pb.PrefillRequest, context: Any) -> AsyncIterator[pb.Progress]:  # noqa: N802
        num_tokens = BLOCK_TOKENS * request.num_blocks
        yield pb.Progress(num_blocks_done=request.num_blocks, computed_tokens=num_tokens, finished=True)


async def main() -> None:
    steps = Steps()
    running = asyncio.create_task(steps.run())
    worker, server = CannedWorker(steps), GrpcServer("127.0.0.1", 0, Health(), InFlight())
    add_DecodeServicer_to_server(worker, server.grpc)
    add_PrefillServicer_to_server(worker, server.grpc)
    print(f"127.0.0.1:{await server.start()}", file=sys.stderr, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    running.cancel()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
