"""What a process knows of its brokers: lives that end with the connection, generations, health, pauses."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from shared.bus.connection import BACKOFF_FIRST_S, BACKOFF_MAX_S, CONDITION, Connection, ConnectionLostError
from shared.service.health import Health


def connection(health: Health | None = None) -> Connection:
    return Connection("nowhere:1", "test", health=health)


async def test_a_generation_is_current_until_the_connection_is_lost() -> None:
    bus = connection()
    assert not bus.is_current(0), "before the first connection"
    bus._on_connected()
    first = await bus.wait_connected()
    assert bus.is_current(first)
    bus._on_lost("gone")
    assert not bus.is_current(first)
    bus._on_connected()
    assert not bus.is_current(first), "it has not held all the time"
    assert bus.is_current(await bus.wait_connected())


async def test_a_lost_connection_ends_every_scope_on_it() -> None:
    bus = connection()
    bus._on_connected()
    entered = [asyncio.Event(), asyncio.Event()]

    async def follow(number: int) -> None:
        async with bus.scope():
            entered[number].set()
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(follow(number)) for number in range(2)]
    for each in entered:
        await each.wait()
    bus._on_lost("gone")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLostError] * 2


async def test_a_scope_waits_for_a_connection_and_ends_with_its_body() -> None:
    bus = connection()

    async def once() -> int:
        async with bus.scope() as generation:
            return generation

    task = asyncio.create_task(once())
    await asyncio.sleep(0)
    assert not task.done()
    bus._on_connected()
    assert await task == 1
    bus._on_lost("gone")  # nobody is on it any more


async def test_a_timeout_of_the_body_is_no_lost_connection() -> None:
    bus = connection()
    bus._on_connected()
    with pytest.raises(TimeoutError, match="of the body"):
        async with bus.scope():
            raise TimeoutError("of the body")


async def test_a_client_that_does_not_stop_holds_nobody_up() -> None:
    bus = connection()
    stopped = asyncio.Event()

    async def stop() -> None:
        await stopped.wait()

    await bus.close_client(stop(), limit_s=0.0)
    [task] = bus._closing
    stopped.set()
    await task
    await asyncio.sleep(0)
    assert not bus._closing


async def test_a_client_that_fails_to_stop_is_nobodys_error() -> None:
    async def stop() -> None:
        raise OSError("broken")

    bus = connection()
    await bus.close_client(stop())
    await asyncio.sleep(0)
    assert not bus._closing


async def test_health_says_how_the_connection_is() -> None:
    health = Health(CONDITION)
    bus = connection(health)
    seen = [health.conditions[CONDITION]]
    bus._on_connected()
    seen.append(health.conditions[CONDITION])
    bus._on_lost("nowhere:1 closed the connection")
    seen.append(health.conditions[CONDITION])
    assert [(each.ok, each.detail) for each in seen] == [
        (False, "not connected to nowhere:1"),
        (True, "connected to nowhere:1"),
        (False, "nowhere:1 closed the connection"),
    ]


async def test_pauses_between_tries_double_up_to_a_limit_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = connection()
    pauses: list[float] = []
    is_up = iter([*[False] * 6, True, False])

    @asynccontextmanager
    async def tripwire(is_up: Iterator[bool] = is_up) -> AsyncIterator[asyncio.StreamReader]:
        if not next(is_up):
            raise ConnectionError("refused")
        reader = asyncio.StreamReader()
        reader.feed_eof()
        yield reader

    async def ensure_topics() -> None:
        pass

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            raise asyncio.CancelledError

    monkeypatch.setattr(bus, "_tripwire", tripwire)
    monkeypatch.setattr(bus, "ensure_topics", ensure_topics)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await bus.run()
    assert pauses[:6] == [min(BACKOFF_FIRST_S * 2**n, BACKOFF_MAX_S) for n in range(6)]
    assert pauses[6:] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S], "a connection that was made ends the doubling"
    assert bus.generation == 1
