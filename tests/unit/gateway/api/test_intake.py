"""Which bodies are worked on at once, and which in a thread."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from aiohttp import web

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.texts import DetokenizeBody, TokenizeBody
from services.gateway.api.intake import INLINE_BODY_BYTES, INLINE_CHARS, RequestIntake
from services.gateway.metrics import GatewayMetrics
from services.gateway.settings import GatewaySettings
from shared.metrics import Metrics
from shared.service.lifecycle import InFlight

LONG, SHORT = "x" * (INLINE_CHARS + 1), "x" * INLINE_CHARS


class Received:
    """A request as far as admission looks at it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._data = json.dumps(body).encode()
        self.content_length = len(self._data)

    async def read(self) -> bytes:
        return self._data


def message(text: str | list[dict[str, str]]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("schema", "body", "is_inline"),
    [
        (CompletionBody, {"prompt": SHORT}, True),
        (CompletionBody, {"prompt": LONG}, False),
        (CompletionBody, {"prompt": [SHORT, "x"]}, False),
        (CompletionBody, {"prompt": list(range(1000))}, True),
        (CompletionBody, {"prompt": [[1, 2], [3]]}, True),
        (CompletionBody, {"prompt": list(range(INLINE_BODY_BYTES))}, False),
        (ChatBody, message("hello"), True),
        (ChatBody, message(LONG), False),
        (ChatBody, message([{"type": "text", "text": LONG}]), False),
        (ChatBody, {"messages": message("")["messages"] * 40}, False),
        (TokenizeBody, {"prompt": LONG}, False),
        (TokenizeBody, message("hello"), True),
        (DetokenizeBody, {"tokens": [1, 2]}, True),
    ],
)
async def test_long_texts_and_long_bodies_go_to_a_thread(
    schema: type[Any], body: dict[str, Any], is_inline: bool
) -> None:
    with ThreadPoolExecutor(1) as executor:
        intake = RequestIntake(GatewaySettings(), InFlight(), GatewayMetrics(Metrics(), "m"), executor)
        worked_in = await intake.body(
            cast(web.Request, Received(body)), schema, lambda _body: threading.current_thread()
        )
    assert (worked_in is threading.main_thread()) == is_inline
