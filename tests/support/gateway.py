"""A gateway on loopback between a real HTTP client and scripted workers, with a tokenizer of bytes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from services.gateway.app import GatewayParts, make_http_app, make_parts
from services.gateway.model import ServedModel
from services.gateway.settings import GatewaySettings
from shared.bus.events import MembershipEvent, Role
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from shared.metrics import Metrics
from shared.model.text.tokenizer import Tokenizer
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import (
    DecodeServicer,
    PrefillServicer,
    add_DecodeServicer_to_server,
    add_PrefillServicer_to_server,
)
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.http import HttpServer
from shared.service.lifecycle import InFlight
from tests.support.placement import take_snapshot

BLOCK_TOKENS = 16
LAYOUT = KvLayout((LayerSpec(None, 1, 8), LayerSpec(32, 1, 8)), "float32", BLOCK_TOKENS)
FINGERPRINT = ModelFingerprint("f" * 64)
MAX_MODEL_LEN = 2048
EOS = 256
VOCAB_SIZE = 257

EAST_POOL, WEST_POOL = "127.0.0.1:1", "127.0.0.2:2"  # on two hosts

Context = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[["Call"], AsyncIterator[Any]]


def byte_tokenizer(directory: Path) -> Tokenizer:
    """One token for each byte, ids 0 to 255 in the order of the byte alphabet, and an end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return Tokenizer.load(directory)


def tiny_tokenizer(directory: Path) -> Tokenizer:
    """The same for the tiny models of `tiny.py`: their end is token 0, which is "!", and they have 199 of the ids."""
    byte_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "!"}))
    return Tokenizer.load(directory)


def served_model(directory: Path, chat_template: str = "") -> ServedModel:
    tokenizer = byte_tokenizer(directory)
    if chat_template:
        tokenizer = Tokenizer.load(directory, chat_template)
    return ServedModel("tiny", tokenizer, LAYOUT, FINGERPRINT, VOCAB_SIZE, MAX_MODEL_LEN, text_cache_bytes=1 << 20)


@dataclass(eq=False)
class Call:
    """What a scripted worker saw of one call."""

    request: Any  # GenerateRequest or PrefillRequest
    updates: list[pb.PlanUpdate] = field(default_factory=list)
    updated: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False


class ScriptedWorker(DecodeServicer, PrefillServicer):
    """A decode or prefill worker that does what `behave` says and keeps a record of its calls."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.calls: list[Call] = []
        self.called = asyncio.Event()
        self.address = ""

    async def Generate(self, request_iterator: AsyncIterator[pb.Control], context: Any) -> AsyncIterator[pb.Tokens]:
        first = await anext(aiter(request_iterator))
        call = self._record(first.start)
        follower = asyncio.create_task(self._follow(request_iterator, call))
        with _watched(call):
            try:
                async for message in self.behave(call):
                    yield message
            finally:
                follower.cancel()

    async def Prefill(self, request: pb.PrefillRequest, context: Any) -> AsyncIterator[pb.Progress]:
        call = self._record(request)
        with _watched(call):
            async for message in self.behave(call):
                yield message

    async def _follow(self, controls: AsyncIterator[pb.Control], call: Call) -> None:
        async for control in controls:
            call.updates.append(control.update)
            call.updated.set()

    def _record(self, request: Any) -> Call:
        call = Call(request)
        self.calls.append(call)
        self.called.set()
        return call


@contextmanager
def _watched(call: Call) -> Iterator[None]:
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        call.cancelled = True
        raise
    finally:
        call.over.set()


def says(
    text: str,
    *,
    finish: Any = pb.FINISH_REASON_LENGTH,
    pause_s: float = 0.0,
    computed: int = 0,
    after: Callable[[], Awaitable[object]] | None = None,
) -> Behaviour:
    """A decode worker that answers with the bytes of `text`, one message for each, as far as max_tokens allow."""

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        if after is not None:
            await after()
        ids = ids_of(text)[: call.request.sampling.max_tokens]
        for number, token_id in enumerate(ids):
            if pause_s:
                await asyncio.sleep(pause_s)
            reason = finish if number == len(ids) - 1 else pb.FINISH_REASON_UNSPECIFIED
            first = computed if number == 0 else 0
            yield pb.Tokens(ids=[token_id], finish_reason=reason, computed_prompt_tokens=first)

    return behave


async def hangs(_call: Call) -> AsyncIterator[Any]:
    """A worker that takes a call and never answers."""
    while True:
        await asyncio.Event().wait()
        yield


def prefills(computed: int, *, after: Callable[[], Awaitable[object]] | None = None) -> Behaviour:
    async def behave(call: Call) -> AsyncIterator[pb.Progress]:
        if after is not None:
            await after()
        yield pb.Progress(num_blocks_done=1, computed_tokens=min(BLOCK_TOKENS, computed))
        yield pb.Progress(num_blocks_done=call.request.num_blocks, computed_tokens=computed, finished=True)

    return behave


def raises(error: Exception) -> Behaviour:
    async def behave(_call: Call) -> AsyncIterator[Any]:
        raise error
        yield  # type: ignore[unreachable]  # makes this a generator

    return behave


def ids_of(text: str) -> list[int]:
    return [_ID_OF_BYTE[byte] for byte in text.encode()]


def bytes_of(ids: list[int]) -> bytes:
    return bytes(_BYTE_OF_ID[i] for i in ids)


@dataclass
class ScriptedSuite:
    """A running gateway, its workers and a client."""

    parts: GatewayParts
    inflight: InFlight
    decode: ScriptedWorker
    prefill: ScriptedWorker
    client: aiohttp.ClientSession
    metrics: Metrics
    health: Health
    join: Callable[..., Awaitable[ScriptedWorker]]

    async def complete(self, **body: Any) -> dict[str, Any]:
        async with self.client.post("/v1/completions", json={"prompt": "hello", **body}) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def works(self) -> None:
        """Assert that an ordinary request succeeds now."""
        self.decode.behave = says("fine")
        answer = await self.complete()
        assert answer["choices"][0]["text"] == "fine"

    def load(self, worker: str) -> int:
        """Return what the gateway takes to be a worker's load: here, the calls that it has open."""
        view = self.parts.registry.view()
        for workers in (view.decode, view.prefill):
            if (row := workers.row_of(WorkerId(worker))) is not None:
                return int(workers.rows["requests"][row])
        raise LookupError(worker)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"prfaas:{name}", {"model_name": "tiny", **labels}) or 0.0


@asynccontextmanager
async def running_suite(directory: Path, **settings: Any) -> AsyncIterator[ScriptedSuite]:
    """Home is west: decode-west; prefill-east is the remote prefill worker."""
    async with AsyncExitStack() as stack:
        metrics, health, inflight = Metrics(), Health(), InFlight()
        channels = await stack.enter_async_context(Channels())
        parts = make_parts(served_model(directory, settings.get("chat_template", "")), channels, metrics)
        executor = stack.enter_context(ThreadPoolExecutor(1))
        rule = {"routing_policy": "threshold", "offload_threshold_tokens": 32, "decode_threshold_tokens": 0}
        chosen = GatewaySettings(**{"dc": "west", "http_port": 0, **rule, **settings})
        app = make_http_app(parts, chosen, health, inflight, executor, metrics)
        server = await stack.enter_async_context(HttpServer(app, "127.0.0.1", 0))

        async def join(worker: str, role: Role, dc: str, behave: Behaviour) -> ScriptedWorker:
            servicer = ScriptedWorker(behave)
            grpc_server = GrpcServer("127.0.0.1", 0, Health(), InFlight())
            add_DecodeServicer_to_server(servicer, grpc_server.grpc)
            add_PrefillServicer_to_server(servicer, grpc_server.grpc)
            servicer.address = f"127.0.0.1:{await grpc_server.start()}"
            stack.push_async_callback(grpc_server.stop, 0)
            announce(parts, worker, role, dc, servicer.address)
            return servicer

        announce(parts, "cachepool-east", "cachepool", "east", EAST_POOL)
        announce(parts, "cachepool-west", "cachepool", "west", WEST_POOL)
        for pool in ("cachepool-east", "cachepool-west"):
            parts.index.doubt(WorkerId(pool))
            take_snapshot(parts.index, WorkerId(pool), 1, 0, [])
        decode = await join("decode-west", "decode", "west", says("hello there"))
        prefill = await join("prefill-east", "prefill", "east", prefills(0))
        url = f"http://127.0.0.1:{server.port}"
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield ScriptedSuite(parts, inflight, decode, prefill, client, metrics, health, join)


def announce(parts: GatewayParts, worker: str, role: Role, dc: str, address: str, **changes: Any) -> None:
    event = MembershipEvent(
        worker=WorkerId(worker),
        role=role,
        dc=Datacenter(dc),
        address=address,
        fingerprint=changes.get("fingerprint", FINGERPRINT),
        layout_hash=changes.get("layout_hash", LayoutHash(LAYOUT.hash)),
        model_name="tiny",
        epoch=Epoch(changes.get("epoch", 1)),
        pool_address={"east": EAST_POOL, "west": WEST_POOL}[dc],
        left=changes.get("left", False),
    )
    parts.registry.apply_membership(event, time.monotonic())


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    """Read a whole stream of server-sent events; [DONE] stays a string."""
    found: list[Any] = []
    async for line in response.content:
        text = line.decode().strip()
        if text:
            data = text.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_ID = dict(enumerate(_byte_of_char()[char] for char in sorted(pre_tokenizers.ByteLevel.alphabet())))
_ID_OF_BYTE = {byte: token_id for token_id, byte in _BYTE_OF_ID.items()}
