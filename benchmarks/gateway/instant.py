"""Workers that cost next to nothing, in one process: decode and prefill for a gateway, an OpenAI server for its peers.

All answer from bytes made beforehand. A first token is sent at once, the others with steps that all answers share.
Prints the three ports: decode, prefill, HTTP.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

import uvloop

from benchmarks.gateway.http2 import CannedConnection, StepClock, framed
from benchmarks.gateway.openai_worker import OpenAiConnection
from shared.proto import prfaas_pb2 as pb

BLOCK_TOKENS = 64
FIRST_WORD_ID, NUM_WORDS = 1000, 4000
"""Ids whose text is a word or a part of one, in the vocabularies of both built-in models."""


class DecodeAnswers:
    """As many words as a request may have, one in a message."""

    def __init__(self) -> None:
        ids = range(FIRST_WORD_ID, FIRST_WORD_ID + NUM_WORDS)
        self._words = [framed(pb.Tokens(ids=[i]).SerializeToString()) for i in ids]
        self._num_answered = 0

    def answer(self, request: bytes) -> Sequence[bytes]:
        start = pb.Control.FromString(request).start
        self._num_answered += 1
        at, num_tokens = self._num_answered * 31 % NUM_WORDS, start.sampling.max_tokens
        words = [self._words[(at + number * 7) % NUM_WORDS] for number in range(num_tokens)]
        tail = len(start.token_ids) - BLOCK_TOKENS * start.num_blocks
        first = pb.Tokens(ids=[FIRST_WORD_ID + at], computed_prompt_tokens=max(1, tail))
        last = pb.Tokens(ids=[FIRST_WORD_ID + at], finish_reason=pb.FINISH_REASON_LENGTH)
        if num_tokens == 1:
            first.finish_reason = last.finish_reason
            return [framed(first.SerializeToString())]
        return [framed(first.SerializeToString()), *words[1:-1], framed(last.SerializeToString())]


class PrefillAnswers:
    """All blocks at once."""

    def answer(self, request: bytes) -> Sequence[bytes]:
        num_blocks = pb.PrefillRequest.FromString(request).num_blocks
        done = pb.Progress(num_blocks_done=num_blocks, computed_tokens=BLOCK_TOKENS * num_blocks, finished=True)
        return [framed(done.SerializeToString())]


async def main(step_s: float) -> None:
    loop = asyncio.get_running_loop()
    decode, prefill = DecodeAnswers(), PrefillAnswers()
    connections: set[StepClock] = set()

    async def step() -> None:
        """At a rate that does not fall when a step takes long: a worker does not wait for gateways."""
        due = loop.time()
        while True:
            due = max(due + step_s, loop.time())
            await asyncio.sleep(due - loop.time())
            for connection in list(connections):
                connection.step()

    servers = [
        await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
        for make in (
            lambda: CannedConnection(decode, connections),
            lambda: CannedConnection(prefill, connections),
            lambda: OpenAiConnection(connections),
        )
    ]
    steps = asyncio.create_task(step())
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), file=sys.stderr, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    steps.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step_s", type=float)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parser.parse_args().step_s))
