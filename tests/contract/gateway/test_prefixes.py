"""`/v1/prefixes`: what is computed and pinned where, what is listed, and what is refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.gateway.app import make_prefixes
from shared.errors import Overloaded, WorkerLost
from shared.ids import Datacenter
from shared.kv.rendezvous import partition
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer, add_CachePoolServicer_to_server
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from shared.tenant import NO_TENANT, tenant_of
from tests.support.gateway import BLOCK_TOKENS, LAYOUT, ScriptedSuite, announce, ids_of, raises, running_suite

TEXT = "You are a helpful assistant who answers briefly and never lies to anybody. " * 2
NUM_BLOCKS = (len(TEXT) - 1) // BLOCK_TOKENS


class PinningPool(CachePoolServicer):
    """A pool that remembers pins and nothing else."""

    def __init__(self) -> None:
        self.pins: dict[str, pb.PinRequest] = {}
        self.num_pinned = 0
        self.refusal: Exception | None = None

    async def Pin(self, request: pb.PinRequest, context: Any) -> pb.PinReply:
        if self.refusal is not None:
            raise self.refusal
        self.num_pinned += 1
        self.pins[request.pin] = request
        return pb.PinReply(present=[b""] * len(request.blocks))

    async def Unpin(self, request: pb.UnpinRequest, context: Any) -> pb.UnpinReply:
        return pb.UnpinReply(found=self.pins.pop(request.pin, None) is not None)

    async def Lanes(self, request: Any, context: Any) -> Any: ...
    async def Probe(self, request: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Publish(self, request_iterator: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Fetch(self, request: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Lookup(self, request: Any, context: Any) -> Any: ...
    async def Snapshot(self, request: Any, context: Any) -> Any: ...  # type: ignore[override]


@pytest.fixture
async def pools() -> AsyncIterator[list[tuple[PinningPool, str]]]:
    """Two nodes."""
    async with AsyncExitStack() as stack:
        running = []
        for _ in range(2):
            pool, server = PinningPool(), GrpcServer("127.0.0.1", 0, Health(), InFlight())
            add_CachePoolServicer_to_server(pool, server.grpc)
            running.append((pool, f"127.0.0.1:{await server.start()}"))
            stack.push_async_callback(server.stop, 0)
        yield running


@pytest.fixture
async def suite(tmp_path: Path, pools: list[tuple[PinningPool, str]]) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        announce(suite.parts, "cachepool-west", "cachepool", "west", pools[0][1], epoch=2)
        yield suite


@pytest.fixture
def pool(pools: list[tuple[PinningPool, str]]) -> PinningPool:
    return pools[0][0]


async def call(suite: ScriptedSuite, method: str, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    async with suite.client.request(method, path, json=body or None) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == status, answer
        return answer


async def test_a_prefix_is_computed_once_and_pinned_at_home(suite: ScriptedSuite, pool: PinningPool) -> None:
    made = await call(suite, "POST", "/v1/prefixes", prompt=TEXT, ttl_s=60, name="assistant", cache_salt="secret")
    assert (made["object"], made["name"], made["num_tokens"]) == ("prefix", "assistant", len(TEXT))
    assert made["kept_tokens"] == NUM_BLOCKS * BLOCK_TOKENS
    assert made["expires_at"] - made["created"] == 60
    pinned = pool.pins[made["id"]]
    keys = suite.parts.model.prefix_keys(ids_of(TEXT), "secret")
    assert [block.key for block in pinned.blocks] == list(keys)
    needed = [LAYOUT.needed_layers(index, NUM_BLOCKS) for index in range(NUM_BLOCKS)]
    assert [block.layers[0] for block in pinned.blocks] == needed, "windows only where a resume needs them"
    assert (pinned.tenant, pinned.ttl_s) == (tenant_of("secret"), 60)
    [start] = [call.request for call in suite.decode.calls]
    assert (list(start.token_ids), start.sampling.max_tokens, start.tenant) == (ids_of(TEXT), 1, tenant_of("secret"))
    assert await call(suite, "GET", "/v1/prefixes") == {
        "object": "list",
        "data": [{name: value for name, value in made.items() if name != "cached_tokens"}],
    }


async def test_the_same_beginning_is_the_same_prefix(suite: ScriptedSuite, pool: PinningPool) -> None:
    first = await call(suite, "POST", "/v1/prefixes", prompt=TEXT)
    again = await call(suite, "POST", "/v1/prefixes", prompt=TEXT, ttl_s=7200)
    assert first["id"] == again["id"]
    assert again["expires_at"] > first["expires_at"]
    assert len((await call(suite, "GET", "/v1/prefixes"))["data"]) == 1
    other = await call(suite, "POST", "/v1/prefixes", prompt=TEXT, cache_salt="other")
    assert other["id"] != first["id"]


async def test_a_deleted_prefix_is_unpinned(suite: ScriptedSuite, pool: PinningPool) -> None:
    made = await call(suite, "POST", "/v1/prefixes", prompt=TEXT)
    gone = await call(suite, "DELETE", f"/v1/prefixes/{made['id']}")
    assert gone == {"id": made["id"], "object": "prefix", "deleted": True}
    assert not pool.pins
    error = (await call(suite, "DELETE", f"/v1/prefixes/{made['id']}", 404))["error"]
    assert (error["code"], error["type"]) == ("not_found", "invalid_request_error")
    assert (await call(suite, "GET", "/v1/prefixes"))["data"] == []


async def test_each_node_pins_what_it_owns(suite: ScriptedSuite, pools: list[tuple[PinningPool, str]]) -> None:
    announce(suite.parts, "cachepool-west-2", "cachepool", "west", pools[1][1])
    made = await call(suite, "POST", "/v1/prefixes", prompt=TEXT)
    keys = suite.parts.model.prefix_keys(ids_of(TEXT), "")
    owned = partition(keys, [address for _, address in pools])  # one may own nothing: it depends on the ports
    for pool, address in pools:
        pinned = [block.key for block in pool.pins[made["id"]].blocks] if made["id"] in pool.pins else []
        assert pinned == [keys[position] for position in owned.get(address, ())]


async def test_what_the_pool_refuses_to_pin_is_not_computed(suite: ScriptedSuite, pool: PinningPool) -> None:
    pool.refusal = Overloaded("pins do not fit")
    error = (await call(suite, "POST", "/v1/prefixes", 429, prompt=TEXT))["error"]
    assert error["code"] == "overloaded"
    assert not suite.decode.calls
    assert (await call(suite, "GET", "/v1/prefixes"))["data"] == []


async def test_what_cannot_be_computed_is_not_kept(suite: ScriptedSuite, pool: PinningPool) -> None:
    suite.decode.behave = raises(WorkerLost("gone"))
    await call(suite, "POST", "/v1/prefixes", 503, prompt=TEXT)
    assert not pool.pins
    assert (await call(suite, "GET", "/v1/prefixes"))["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": TEXT, "messages": [{"role": "system", "content": "x"}]}, "prompt"),
        ({"prompt": "too short"}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": TEXT, "ttl_s": 0}, "ttl_s"),
        ({"prompt": TEXT, "ttl_s": "60"}, "ttl_s"),
        ({"prompt": TEXT, "name": "x" * 257}, "name"),
        ({"messages": []}, "messages"),
        ({"prompt": "long " * 1000}, "prompt"),
    ],
)
async def test_bad_bodies_name_the_field(
    suite: ScriptedSuite, pool: PinningPool, body: dict[str, Any], param: str
) -> None:
    error = (await call(suite, "POST", "/v1/prefixes", 400, **body or {"ttl_s": 5}))["error"]
    assert error["param"] == param
    assert not pool.pins


async def test_pins_are_renewed_until_their_time_is_over(suite: ScriptedSuite, pool: PinningPool) -> None:
    now = 1000.0
    prefixes = make_prefixes(suite.parts, Datacenter("west"), lambda: now)
    keys = suite.parts.model.prefix_keys(ids_of(TEXT), "")
    prefix = await prefixes.keep(keys, len(TEXT), NO_TENANT, 60.0, "")
    pool.pins.clear()  # the pool was restarted
    now += 45
    await prefixes.renew()
    assert pool.pins[prefix.id].ttl_s == 15
    pool.refusal = Overloaded("no")
    await prefixes.renew()  # a refusal is logged, the next round tries again
    pool.refusal = None
    now += 15
    await prefixes.renew()
    assert (pool.num_pinned, prefixes.current()) == (2, [])
