"""What the gateway is asked, and how much processor time that takes."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import aiohttp

from benchmarks.gateway.processes import ChildProcess

Body = dict[str, Any]

TURN_CHARS = 1200
ANSWER_CHARS = 400
TOKEN_CHARS = 4
STREAMED_TOKENS = 129


@dataclass(frozen=True)
class GatewayWork:
    """One kind of request, sent `width` at a time. `bodies` yields a new one for each number."""

    name: str
    path: str
    body: Callable[[int], Body]
    num_requests: int
    width: int = 1
    tokens_out: int = 1


class Texts:
    """English prose and code, each piece from another place, so that no two prompts share a beginning."""

    def __init__(self) -> None:
        self._text = "\n".join(topics[name] for name in sorted(topics))

    def piece(self, number: int, num_chars: int) -> str:
        start = random.Random(number).randrange(len(self._text) - num_chars)
        return self._text[start : start + num_chars]


def ids(number: int, num_tokens: int) -> list[int]:
    draw = random.Random(number).randrange
    return [draw(200, 49_000) for _ in range(num_tokens)]


def completion(prompt: str | list[int], **more: Any) -> Body:
    return {"model": None, "prompt": prompt, "max_tokens": 1, "temperature": 0, **more}


def conversation(texts: Texts, number: int, num_turns: int) -> list[dict[str, str]]:
    """Return the messages up to question `num_turns`: equal numbers give conversations that extend one another."""
    messages = [{"role": "system", "content": texts.piece(number << 10, TURN_CHARS)}]
    for turn in range(num_turns):
        messages.append({"role": "user", "content": texts.piece((number << 10) + 2 * turn + 1, TURN_CHARS)})
        if turn < num_turns - 1:
            messages.append({"role": "assistant", "content": texts.piece((number << 10) + 2 * turn + 2, ANSWER_CHARS)})
    return messages


def works(num_short: int, num_long: int, num_turns: int, num_streamed: int = 2) -> Iterator[GatewayWork]:
    """Yield all works; the numbers of their requests say how long they take, `num_streamed` one after another."""
    texts = Texts()

    def of_ids(num_tokens: int, number: int) -> Body:
        return completion(ids(number, num_tokens))

    def of_text(num_tokens: int, number: int) -> Body:
        return completion(texts.piece(number, TOKEN_CHARS * num_tokens))

    def turn(number: int) -> Body:
        messages = conversation(texts, number // num_turns, 1 + number % num_turns)
        return {"messages": messages, "max_tokens": 1, "temperature": 0}

    def streamed(extra: Body, _number: int) -> Body:
        return {**extra, "max_tokens": STREAMED_TOKENS, "temperature": 0, "stream": True}

    for num_tokens, num_requests in ((30, num_short), (1000, num_long), (6000, num_long)):
        yield GatewayWork(f"{num_tokens} ids", "completions", partial(of_ids, num_tokens), num_requests)
        yield GatewayWork(f"{num_tokens} tokens of text", "completions", partial(of_text, num_tokens), num_requests)
    yield GatewayWork("30 ids, 16 at once", "completions", partial(of_ids, 30), num_short, width=16)
    yield GatewayWork("turns of conversations", "chat/completions", turn, max(num_long // num_turns, 1) * num_turns)
    question = "Say something long."
    for width in (1, 16):
        for path, extra in (
            ("completions", {"prompt": question}),
            ("chat/completions", {"messages": [{"role": "user", "content": question}]}),
        ):
            name = f"{path}, streamed, {width} at once"
            yield GatewayWork(
                name, path, partial(streamed, extra), num_streamed * width, width=width, tokens_out=STREAMED_TOKENS
            )


class Client:
    """Sends works to one gateway. Numbers go on, so that no prompt comes twice."""

    def __init__(self, gateway: ChildProcess) -> None:
        self._gateway = gateway
        self._url = f"http://127.0.0.1:{gateway.said}/v1/"
        self._next: dict[str, int] = {}

    async def spent_s(self, work: GatewayWork) -> float:
        """Return the gateway's processor time for each request of a work."""
        first = self._next.get(work.name, 0)
        self._next[work.name] = first + work.num_requests
        bodies = [json.dumps(work.body(first + n)).encode() for n in range(work.num_requests)]
        bodies.reverse()
        async with aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._connect(session) for _ in range(work.width)))
            before = self._gateway.cpu_s()
            await asyncio.gather(*(self._send(session, work.path, bodies) for _ in range(work.width)))
            return (self._gateway.cpu_s() - before) / work.num_requests

    async def _connect(self, session: aiohttp.ClientSession) -> None:
        async with session.get("models") as response:
            await response.read()

    async def _send(self, session: aiohttp.ClientSession, path: str, bodies: list[bytes]) -> None:
        """Send what is left, one after another. Raises `RuntimeError` for an answer that is none."""
        while bodies:
            headers = {"Content-Type": "application/json"}
            async with session.post(path, data=bodies.pop(), headers=headers) as response:
                answer = await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {answer.decode()}")
