"""Health conditions."""

import asyncio

from shared.service.health import Health


def test_only_required_conditions_decide() -> None:
    health = Health("grpc", "model")
    ready = [health.ready]
    for name, ok in (("grpc", True), ("kafka", False), ("model", True), ("model", False)):
        health.set(name, ok)
        ready.append(health.ready)
    assert ready == [False, False, False, True, False]
    assert not health.conditions["kafka"].required


def test_draining_is_for_good() -> None:
    health = Health()
    assert health.ready
    health.drain()
    health.set("grpc", True)
    assert not health.ready


async def test_changes_wake_every_waiter_once() -> None:
    health = Health("grpc")
    version = health.version
    waiters = [asyncio.create_task(health.changed(version)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    health.set("grpc", True)
    assert await asyncio.gather(*waiters) == [health.version] * 3
    assert await health.changed(version) == health.version
    unchanged = health.version
    health.set("grpc", True)  # no news
    assert health.version == unchanged
