"""An OpenAI server without a model, for routers that stand before such: canned answers over HTTP/1.1."""

import asyncio
import json
import re
from typing import cast

from benchmarks.gateway.http2 import StepClock

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MODEL = "canned"


def event(data: str) -> bytes:
    """Return an event as one chunk of a chunked body."""
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


def completion(finish_reason: str | None, usage: dict[str, int] | None = None) -> str:
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": finish_reason}
    more = {} if usage is None else {"usage": usage}
    return json.dumps(
        {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice], **more}
    )


def response(body: str) -> bytes:
    data = body.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


_WORD, _LAST = event(completion(None)), event(completion("length")) + event("[DONE]") + b"0\r\n\r\n"
_WHOLE = response(completion("length", {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}))
_STATE = response(json.dumps({"object": "list", "status": "ok", "data": [{"id": MODEL, "object": "model"}]}))


class OpenAiConnection(asyncio.Protocol):
    """One client's connection: completions, and to everything else that a router asks for, that the model is there."""

    _transport: asyncio.Transport

    def __init__(self, open_connections: set[StepClock]) -> None:
        self._open_connections = open_connections
        self._received = b""
        self._num_left = 0  # tokens of the answer that is being streamed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass
        self._open_connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._open_connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        num_bytes = int(length[1]) if length else 0
        if not found or len(rest) < num_bytes:
            return
        self._received = rest[num_bytes:]
        self._answer(head, rest[:num_bytes])

    def step(self) -> None:
        """Send one token of the answer that is being streamed."""
        if self._num_left:
            self._num_left -= 1
            self._transport.write(_WORD if self._num_left else _LAST)

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST /v1/completions"):
            self._transport.write(_STATE)
        elif b'"stream": true' in body or b'"stream":true' in body:
            self._num_left = json.loads(body)["max_tokens"]
            self._transport.write(_EVENTS)
            self.step()
        else:
            self._transport.write(_WHOLE)
