"""Credentials reach each of the four kinds of connection; what does not present them is turned away."""

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.bus.kafka import Bus
from shared.config import ServiceSettings, load
from shared.errors import SettingsError, WorkerLost
from shared.metrics import Metrics
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.server import GrpcServer
from shared.security.channels import ChannelTls
from shared.security.credentials import NO_SECURITY, security_of
from shared.security.kafka import KafkaSecurity
from shared.security.refusals import Refusals
from shared.service.health import Health
from shared.service.http import StatusServer
from shared.service.lifecycle import InFlight
from tests.support.waiting import LIMIT_S, until

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_without_a_setting_nothing_is_secured() -> None:
    assert security_of(load(ServiceSettings, {})) == NO_SECURITY
    assert (NO_SECURITY.grpc_server, NO_SECURITY.grpc_channel, NO_SECURITY.http_server) == (None, None, None)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(SettingsError, match="PRFAAS_SECURITY: must be one of none, mtls"):
        load(ServiceSettings, {"PRFAAS_SECURITY": "tls"})


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(KafkaSecurity(sasl_plain_password="secret"))


async def test_grpc_credentials(authority: trustme.CA) -> None:
    certificate = authority.issue_cert(HOST)
    key, chain = certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()
    server = GrpcServer(HOST, 0, health := Health("grpc"), InFlight(), grpc.ssl_server_credentials([(key, chain)]))
    health.set("grpc", True)
    address = f"{HOST}:{await server.start()}"
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    tls = NamedByHost(lambda: trusting, client_tls(authority), Refusals(), str)
    try:
        async with Channels(tls) as secure, Channels() as plain:
            assert await is_serving(secure, address)
            with pytest.raises(WorkerLost):
                await is_serving(plain, address)
    finally:
        await server.stop(0)


async def test_http_credentials(authority: trustme.CA) -> None:
    async with (
        StatusServer(HOST, 0, Metrics().registry, Health(), server_tls(authority)) as server,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"https://{HOST}:{server.port}/livez", ssl=client_tls(authority)) as reply:
            assert reply.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{HOST}:{server.port}/livez")


async def test_kafka_credentials(authority: trustme.CA) -> None:
    """The tripwire and the first real client both get through TLS; without it neither would be counted."""
    async with tls_listener(authority) as (address, greetings):
        bus = Bus(address, "test", KafkaSecurity("SSL", client_tls(authority)))
        running = asyncio.create_task(bus.run())
        try:
            await until(lambda: len(greetings) >= 2 and any(greetings))
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.mark.parametrize("client", [AIOKafkaProducer, AIOKafkaConsumer, AIOKafkaAdminClient])
def test_every_kafka_client_takes_all_of_it(client: type[Any]) -> None:
    assert {item.name for item in fields(KafkaSecurity)} <= inspect.signature(client.__init__).parameters.keys()


class NamedByHost(ChannelTls):
    """Expects a certificate for the host, as one that is not of the suite."""

    def name_for(self, _service: str, _dc: str) -> str:
        return HOST


async def is_serving(channels: Channels, address: str) -> bool:
    stub = health_pb2_grpc.HealthStub(channels.get(address))
    with rpc_errors(address):
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def tls_listener(authority: trustme.CA) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Take connections over TLS; what each says first is listed: nothing for one that is only held."""
    greetings: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(greetings)
        greetings.append(b"")
        greetings[number] = await reader.read(64)
        writer.close()

    listener = await asyncio.start_server(take, HOST, 0, ssl=server_tls(authority))
    async with listener:
        yield f"{HOST}:{listener.sockets[0].getsockname()[1]}", greetings
