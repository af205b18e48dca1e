"""What every process of the suite has around its own parts, opened in one order and closed in reverse."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.bus.announce import Announcer
from shared.bus.events import LoadEvent, MembershipEvent
from shared.bus.kafka import TOPICS, Bus, Topic
from shared.config import ServiceSettings
from shared.ids import new_epoch
from shared.log import configure
from shared.metrics import Metrics, watch_loop_lag
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.security.credentials import Security, security_of
from shared.service.health import Health
from shared.service.http import StatusServer
from shared.service.lifecycle import Background, InFlight, background
from shared.telemetry.tracing import tracing

SERVES_GRPC = "grpc"
"""The health condition that a `WorkerServer` makes true."""


@dataclass(frozen=True)
class Host:
    """What a composition root builds on. Everything in it is open, and owned by the block of `open_host`."""

    settings: ServiceSettings
    health: Health
    metrics: Metrics
    inflight: InFlight
    jobs: Background
    channels: Channels
    security: Security
    bus: Bus  # not connected before `connect`

    def connect(self) -> None:
        """Follow the brokers from now on, and measure how late the event loop is."""
        self.jobs.start(self.bus.run(), name="bus")
        self.jobs.start(watch_loop_lag(self.metrics), name="loop lag")


@asynccontextmanager
async def open_host(
    settings: ServiceSettings, *conditions: str, topics: Sequence[Topic] = TOPICS
) -> AsyncIterator[Host]:
    """Configure logging and tracing, and open a host, ready once all `conditions` are true; its bus makes `topics`.

    Raises `SettingsError` when credentials cannot be read. At the end of the block channels are closed, then background
    jobs are cancelled. A job that crashes ends the block.
    """
    configure(settings.service, level=settings.log_level, fmt=settings.log_format, dc=settings.dc)
    security = security_of(settings)
    health, metrics = Health(*conditions), Metrics()
    if security.collector is not None:
        metrics.registry.register(security.collector)
    async with (
        tracing(settings, metrics),
        background() as jobs,
        Channels(security.grpc_channel, silence_s=settings.channel_silence_s) as channels,
    ):
        bus = Bus(settings.kafka, settings.worker_id, security.kafka, health=health, metrics=metrics, topics=topics)
        yield Host(settings, health, metrics, InFlight(), jobs, channels, security, bus)


def status_server(host: Host) -> StatusServer:
    """Return the HTTP server of a process that has no API of its own: metrics, liveness, readiness."""
    settings = host.settings
    return StatusServer(
        settings.http_host,
        settings.http_port,
        host.metrics.registry,
        host.health,
        host.security.http_server,
        host.security.guard,
    )


class WorkerServer:
    """How others find and call a worker: a gRPC server that is announced on the bus for as long as it takes work.

    Its port is bound from the start, so that parts can be built with the address. Add servicers to `grpc`, then
    `start`; in the end first `leave`, so that no plan names the worker any more, then `stop`.
    """

    def __init__(self, host: Host) -> None:
        """Raises `SettingsError` when the port is taken."""
        settings = host.settings
        self.epoch = new_epoch()
        self.producer = host.bus.producer()
        self.grpc = GrpcServer(
            settings.grpc_host,
            settings.grpc_port,
            host.health,
            host.inflight,
            host.security.grpc_server,
            silence_s=settings.silence_s,
            guard=host.security.guard,
        )
        self.address = f"{settings.advertise_host}:{self.grpc.bind()}"
        self._host = host
        self._announcer: Announcer | None = None

    async def start(self, membership: MembershipEvent, load: Callable[[], LoadEvent]) -> None:
        """Serve, connect to the bus, and announce the worker and its load."""
        await self.grpc.start()
        self._announcer = Announcer(self.producer, membership, load)
        self._host.connect()
        self._host.jobs.start(self.producer.run(), name="producer")
        self._host.jobs.start(self._announcer.run(), name="announcer")
        self._host.health.set(SERVES_GRPC, True)

    def announce_soon(self) -> None:
        """Announce the load before its time: it is not what it was."""
        if self._announcer is not None:
            self._announcer.soon()

    async def leave(self) -> None:
        """Say that the worker is going."""
        if self._announcer is not None:
            await self._announcer.leave()

    async def stop(self) -> int:
        """Let calls end within the drain time, then close; return how many were cancelled."""
        return await self.grpc.stop(self._host.settings.drain_s)
