"""Calls through a real server: request ids, answers, and errors that keep their class."""

import asyncio
import inspect
import socket

import pytest
from structlog.testing import capture_logs

from shared import errors
from shared.deadline import Deadline
from shared.errors import (
    BadRequest,
    Internal,
    Overloaded,
    PrfaasError,
    WorkerLost,
)
from shared.log import bound_request, current_request_id
from shared.pool.client import PoolClient
from shared.rpc.client import Channels, rpc_errors
from tests.support.echo import KINDS, SERVICE, echo, raising, serving
from tests.support.waiting import LIMIT_S


def all_errors() -> list[type[PrfaasError]]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PrfaasError)]
    return [cls for cls in classes if cls is not PrfaasError]


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_and_request_id(kind: str) -> None:
    async def whoami(request: bytes, context: object) -> bytes:
        return str(current_request_id()).encode()

    async with serving(whoami) as peer:
        with bound_request("req-7"):
            assert set(await peer.call(kind)) == {b"req-7"}
        (anonymous,) = set(await peer.call("unary_unary"))
        assert len(anonymous) == 32  # a call without an id gets one
        assert peer.inflight.count == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_every_error_keeps_its_class(kind: str) -> None:
    current: list[PrfaasError] = []

    async def step(request: bytes, context: object) -> bytes:
        raise current[0]

    assert len(all_errors()) >= 15
    async with serving(step) as peer:
        for cls in all_errors():
            current[:] = [cls(f"{cls.__name__}: n\u00e4her\nzwei", param="messages[0]")]
            with pytest.raises(PrfaasError) as raised:
                await peer.call(kind)
            assert type(raised.value) is cls
            assert str(raised.value) == f"{cls.__name__}: n\u00e4her\nzwei"
            assert raised.value.param == "messages[0]"


async def test_what_else_an_error_carries() -> None:
    async with serving(raising(Overloaded("busy", retry_after_s=2.5))) as peer:
        with pytest.raises(Overloaded) as overloaded:
            await peer.call("unary_unary")
        assert overloaded.value.retry_after_s == 2.5
    long = "\u20ac" * 100_000
    async with serving(raising(BadRequest(long, param="\u20ac"))) as peer:
        with pytest.raises(BadRequest) as bad:
            await peer.call("unary_unary")
        assert long.startswith(str(bad.value))
        assert len(str(bad.value)) > 1000
    group = ExceptionGroup("from a TaskGroup", [BadRequest("first"), Overloaded("second")])
    async with serving(raising(group)) as peer:
        with pytest.raises(BadRequest, match="first"):
            await peer.call("unary_stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_exceptions_are_logged_and_leak_nothing(kind: str) -> None:
    async with serving(raising(KeyError("secret path"))) as peer:
        with capture_logs() as logs, pytest.raises(Internal) as raised:
            await peer.call(kind)
        assert str(raised.value) == "internal error"
        crash = next(entry for entry in logs if entry["event"] == "rpc_crashed")
        assert crash["method"] == f"/{SERVICE}/{kind}"
        assert isinstance(crash["exc_info"], KeyError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_peer_and_a_missing_method(kind: str) -> None:
    async with serving(echo) as peer:
        channel = peer.channels.get("127.0.0.1:1")
        with pytest.raises(WorkerLost, match="echo: "):
            await peer._replace(channel=channel).call(kind)
        with pytest.raises(Internal, match="echo: "), rpc_errors("echo"):
            await peer.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")


async def test_a_publication_to_nobody_fails_as_one_of_ours() -> None:
    """Also when it is closed before its first read: then gRPC raises an error without a public name."""
    async with Channels() as channels:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(WorkerLost):
            async with PoolClient(channels, address).publish(Deadline.after(10)):
                pass


async def test_writing_to_a_call_that_the_server_has_ended() -> None:
    async with serving(raising(BadRequest("no"))) as peer:
        call = peer.channel.stream_stream(f"/{SERVICE}/stream_stream")()
        with pytest.raises((BadRequest, WorkerLost)), rpc_errors("echo"):  # noqa: PT012
            async with asyncio.timeout(LIMIT_S):
                while True:
                    await call.write(b"x")
                    await asyncio.sleep(0.01)
        with pytest.raises(BadRequest), rpc_errors("echo"):  # whoever reads learns why
            await call.read()


async def test_large_messages_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")

    async def big(request: bytes, context: object) -> bytes:
        return bytes(32 << 20)

    async with serving(big) as peer:
        assert [len(answer) for answer in await peer.call("unary_unary")] == [32 << 20]
