"""Engines whose messages to their pools are held up."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.kv.frame import Frame
from shared.pool.publication import Publication
from tests.support.waiting import until


def send_slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each message take its time, as over a full link."""
    _send_after(monkeypatch, lambda: asyncio.sleep(seconds))


def send_when(monkeypatch: pytest.MonkeyPatch, may_go: Callable[[], object]) -> None:
    """Let no message go before something has come true, as over a link that is full until then."""
    _send_after(monkeypatch, lambda: until(may_go))


def _send_after(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], Awaitable[None]]) -> None:
    send = Publication.send

    async def late(publication: Publication, frames: list[Frame]) -> None:
        await wait()
        await send(publication, frames)

    monkeypatch.setattr(Publication, "send", late)
