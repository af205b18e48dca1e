"""Services come in any order, and each may die and come back: the suite heals by itself."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.checkpoints import served
from tests.support.suite import SERVICES, RefusedError, Suite
from tests.support.texts import real_text
from tests.support.waiting import eventually

pytestmark = [pytest.mark.suite, pytest.mark.timeout(240)]

HEAL_S = 90
"""Restarting an engine takes some seconds here; what is judged is that nobody has to help."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("any-order")
    suite = Suite(folder, served(folder))
    try:
        suite.start(*reversed(SERVICES))  # the gateway first, and no broker yet
        yield suite
    finally:
        suite.stop()


@pytest.fixture(autouse=True)
async def ready(suite: Suite) -> None:
    if "broker" not in suite.running:
        suite.start("broker")
    await suite.ready()


async def test_started_backwards_with_the_broker_last_it_serves(suite: Suite) -> None:
    answer = await answered(suite, real_text(2000))
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("name", [*SERVICES, "broker"])
async def test_a_service_that_was_killed_comes_back(suite: Suite, name: str) -> None:
    text = real_text(1500, skip=1000 * len(name))
    before = await answered(suite, text)
    suite.kill(name)
    suite.start(name)
    await suite.ready(HEAL_S)
    after = await answered(suite, text)
    assert after["choices"][0]["text"] == before["choices"][0]["text"]
    long = await answered(suite, real_text(3000, skip=200_000 + 9000 * len(name)))
    assert long["usage"]["completion_tokens"] == 4


async def answered(suite: Suite, text: str) -> dict[str, Any]:
    """Ask until it is answered: a gateway says 503 while it knows that a worker's life is over, and of no new one.

    That may be any time after a process was killed: until then its restarted self answers at the old one's address.
    """
    async with asyncio.timeout(HEAL_S):
        while True:
            try:
                return await suite.complete(text, 4)
            except RefusedError as refused:
                if refused.status != 503:
                    raise
                await asyncio.sleep(0.2)


TOPICS = ("prfaas.placement", "prfaas.membership", "prfaas.load")
GARBAGE = (b"", b"\x00garbage", bytes(1000))


async def test_garbage_on_every_topic_is_counted_and_skipped(suite: Suite) -> None:
    async def skipped() -> list[float]:
        return [await suite.metric("gateway", "kafka_events_skipped_total", topic=topic) for topic in TOPICS]

    async def all_skipped() -> bool:
        """What is sent while the gateway still looks for the new broker is passed over with the log that it lost."""
        for topic in TOPICS:
            for value in GARBAGE:
                await producer.send_and_wait(topic, value, key=b"nobody")
        return all(now >= then + len(GARBAGE) for now, then in zip(await skipped(), before, strict=True))

    before = await skipped()
    producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{suite.grpc['broker']}")
    await producer.start()
    try:
        await eventually(all_skipped)
    finally:
        await producer.stop()
    assert (await answered(suite, real_text(2000, skip=400_000)))["usage"]["completion_tokens"] == 4


async def test_settings_are_checked_all_at_once(suite: Suite) -> None:
    code, output = suite.run_once("decode-west", PRFAAS_MAX_BATCH="0", PRFAAS_GRPC_PORT="x", PRFAAS_DTYPE="int3")
    assert code == 2
    assert all(name in output for name in ("PRFAAS_MAX_BATCH", "PRFAAS_GRPC_PORT", "PRFAAS_DTYPE"))


@pytest.mark.parametrize("name", ["prefill-east", "gateway"])
async def test_a_missing_model_file_is_named(suite: Suite, name: str) -> None:
    code, output = suite.run_once(name, PRFAAS_MODEL="/nowhere/model.gguf", PRFAAS_GRPC_PORT="0", PRFAAS_HTTP_PORT="0")
    assert code != 0
    assert "/nowhere/model.gguf" in output
