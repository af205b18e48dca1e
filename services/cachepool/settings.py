"""Settings of a cache pool."""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import ClassVar

from shared.config import fraction, non_negative, parse_bytes, port, positive, setting
from shared.lanes.settings import MAX_CONNECTIONS, LaneSettings, connections

MAX_STREAMS = MAX_CONNECTIONS
"""Streams that share one pull at a time."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings(LaneSettings):
    """One pool node. Limits on requests keep one client from taking the pool's memory or time."""

    service: ClassVar[str] = "cachepool"

    pool_bytes: int = setting(
        "PRFAAS_POOL_BYTES",
        1 << 30,
        help="memory for KV blocks, bookkeeping included",
        parse=parse_bytes,
        check=positive,
    )
    ahead_bytes: int = setting(
        "PRFAAS_POOL_AHEAD_BYTES",
        64 << 20,
        help="memory that is made ready beyond what is in use",
        parse=parse_bytes,
        check=non_negative,
    )
    lane_folder: Path = setting(
        "PRFAAS_POOL_LANE_FOLDER",
        Path(gettempdir()) / f"prfaas-{os.getuid()}",
        help="private folder where engines of this host find the pool's shared memory; containers share it as a volume",
    )
    lane_port: int = setting("PRFAAS_POOL_LANE_PORT", 0, help="port of the socket lane (0: any free one)", check=port)
    max_lane_connections: int = setting(
        "PRFAAS_POOL_MAX_LANE_CONNECTIONS",
        1024,
        help="connections of all links, and processes attached",
        check=positive,
    )
    max_streams: int = setting(
        "PRFAAS_POOL_MAX_STREAMS", 1024, help="writers and readers at a time, each kind", check=positive
    )
    max_blocks: int = setting("PRFAAS_POOL_MAX_BLOCKS", 16384, help="blocks named in one request", check=positive)
    max_lease_s: float = setting(
        "PRFAAS_POOL_MAX_LEASE_S", 60.0, help="longest silence that a writer may ask for", check=positive
    )
    max_wait_s: float = setting(
        "PRFAAS_POOL_MAX_WAIT_S", 120.0, help="longest wait for a writer that a reader may ask for", check=positive
    )
    pull_timeout_s: float = setting(
        "PRFAAS_POOL_PULL_TIMEOUT_S", 120.0, help="time limit of one pull from a peer pool", check=positive
    )
    silence_s: float = setting(
        "PRFAAS_SILENCE_S",
        6.0,
        help="a connection as long silent is lost; links may pause",
        check=positive,
    )
    stall_s: float = setting(
        "PRFAAS_POOL_STALL_S",
        6.0,
        help="a peer pool that has sent nothing for so long is given up",
        check=positive,
    )
    link_connections: int = setting(
        "PRFAAS_POOL_LINK_CONNECTIONS",
        8,
        help="connections of a pull from elsewhere (at most 64)",
        check=connections,
    )
    tenant_quota: float = setting(
        "PRFAAS_POOL_TENANT_QUOTA",
        1.0,
        help="part of the memory that is a tenant's quota (1: none)",
        check=fraction,
    )
    pin_share: float = setting(
        "PRFAAS_POOL_PIN_SHARE", 0.25, help="part of the memory that may be pinned", check=fraction
    )
    max_pin_s: float = setting(
        "PRFAAS_POOL_MAX_PIN_S", 86400.0, help="longest time that a pin lives without being renewed", check=positive
    )
    heartbeat_s: float = setting(
        "PRFAAS_POOL_HEARTBEAT_S", 2.0, help="interval of placement events while nothing changes", check=positive
    )
    object_url: str = setting(
        "PRFAAS_POOL_OBJECT_URL",
        "",
        help="where blocks are kept behind memory: file:///folder, s3://bucket/prefix, gs://, az:// (empty: nowhere);"
        " each pool uses a folder of its own in it, named by its worker id",
    )
    object_bytes: int = setting(
        "PRFAAS_POOL_OBJECT_BYTES",
        8 << 30,
        help="bytes that the objects may take (0: no limit)",
        parse=parse_bytes,
        check=non_negative,
    )
    object_timeout_s: float = setting(
        "PRFAAS_POOL_OBJECT_TIMEOUT_S", 5.0, help="time limit of one call of the object store", check=positive
    )
    object_reads: int = setting(
        "PRFAAS_POOL_OBJECT_READS", 16, help="reads from the object store at a time", check=positive
    )
    object_writes: int = setting(
        "PRFAAS_POOL_OBJECT_WRITES", 4, help="blocks written to the object store at a time", check=positive
    )
    object_queue: int = setting(
        "PRFAAS_POOL_OBJECT_QUEUE", 16384, help="blocks that may wait to be written; more are not", check=positive
    )

    @property
    def channel_silence_s(self) -> float:
        """Longer than a peer may stall: one that hangs becomes suspect first, and is not asked again at once."""
        return max(self.silence_s, 1.5 * self.stall_s)
