"""What an operator can set about lanes, on engines and pools."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from shared.config import ServiceSettings, parse_bytes, positive, setting

LaneName: TypeAlias = Literal["shared_memory", "socket", "grpc"]

MAX_CONNECTIONS = 64
"""Connections of one link at most."""


def connections(value: float) -> str | None:
    """Check a number of connections of a link."""
    return None if 1 <= value <= MAX_CONNECTIONS else f"must be 1 to {MAX_CONNECTIONS}"


def _lanes(text: str) -> tuple[LaneName, ...]:
    """Read a list of lanes; the last one is always gRPC's messages."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    found: list[LaneName] = []
    for name in names:
        known = next((lane for lane in get_args(LaneName) if lane == name), None)
        if known is None:
            raise ValueError(f"{name!r} is none of {', '.join(get_args(LaneName))}")
        found.append(known)
    return (*(lane for lane in found if lane != "grpc"), "grpc")


@dataclass(frozen=True, kw_only=True)
class LaneSettings(ServiceSettings):
    """Which lanes a process uses, and what they may take."""

    lanes: tuple[LaneName, ...] = setting(
        "PRFAAS_LANES",
        get_args(LaneName),
        help="how KV may travel, best first: shared_memory on one host, socket between hosts, grpc always",
        parse=_lanes,
    )
    lane_connections: int = setting(
        "PRFAAS_LANE_CONNECTIONS", 2, help="connections of a link within a datacenter (at most 64)", check=connections
    )
    lane_bytes: int = setting(
        "PRFAAS_LANE_BYTES",
        parse_bytes("256MiB"),
        help="memory for what a link has brought and nobody has taken yet",
        parse=parse_bytes,
        check=positive,
    )
