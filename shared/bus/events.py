"""The events of the three topics as dataclasses, over the protobuf messages of prfaas.proto."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeVar, cast, get_args

from google.protobuf.message import DecodeError

from shared.bus.mirrors import original_name
from shared.errors import BadEvent
from shared.ids import BlockKey, Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.step_profile import StepProfile

EVENT_VERSION = 2
KEY_BYTES = 32

TOPIC_PLACEMENT = "prfaas.placement"
TOPIC_MEMBERSHIP = "prfaas.membership"
TOPIC_LOAD = "prfaas.load"

M = TypeVar("M", pb.PlacementEvent, pb.MembershipEvent, pb.LoadEvent)

NO_FINGERPRINT, NO_LAYOUT = ModelFingerprint(""), LayoutHash("")  # pools serve any model

Role = Literal["prefill", "decode", "cachepool"]


class StoredBlocks(NamedTuple):
    """Blocks that are held in the same way. Keys stay packed: nobody makes an object of each of a million blocks."""

    keys: bytes  # 32 bytes each, back to back
    groups: int  # bitmask of the layer groups that are held wholly, in any tier
    memory_groups: int  # of these, the ones held in memory

    @property
    def num_blocks(self) -> int:
        return len(self.keys) // KEY_BYTES


def unpack_keys(packed: bytes) -> list[BlockKey]:
    """Return the keys that were packed back to back."""
    return [BlockKey(packed[start : start + KEY_BYTES]) for start in range(0, len(packed), KEY_BYTES)]


def stored_to_messages(stored: Iterable[StoredBlocks]) -> list[pb.StoredBlocks]:
    return [pb.StoredBlocks(keys=s.keys, groups=s.groups, memory_groups=s.memory_groups) for s in stored]


def stored_from_messages(messages: Iterable[pb.StoredBlocks]) -> tuple[StoredBlocks, ...]:
    """Raises BadEvent."""
    return tuple(StoredBlocks(_keys(m.keys), m.groups, m.memory_groups & m.groups) for m in messages)


@dataclass(frozen=True, kw_only=True)
class PlacementEvent:
    """A change of what `holder` holds; its events carry consecutive sequence numbers within an epoch."""

    holder: WorkerId
    dc: Datacenter
    epoch: Epoch
    sequence: int
    stored: tuple[StoredBlocks, ...] = ()  # how these blocks are now, whatever was said of them before
    evicted: bytes = b""  # keys of blocks that are gone, packed
    cleared: bool = False  # everything stored before this event is gone

    @property
    def num_blocks(self) -> int:
        """Blocks that this event says something of."""
        return sum(s.num_blocks for s in self.stored) + len(self.evicted) // KEY_BYTES

    def encode(self) -> bytes:
        return pb.PlacementEvent(
            version=EVENT_VERSION,
            holder=self.holder,
            dc=self.dc,
            epoch=self.epoch,
            sequence=self.sequence,
            stored=stored_to_messages(self.stored),
            evicted=self.evicted,
            cleared=self.cleared,
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadEvent."""
        message = _parsed(pb.PlacementEvent(), data)
        return cls(
            holder=WorkerId(_present(message.holder, "holder")),
            dc=Datacenter(message.dc),
            epoch=Epoch(_positive(message.epoch, "epoch")),
            sequence=message.sequence,
            stored=stored_from_messages(message.stored),
            evicted=_keys(message.evicted),
            cleared=message.cleared,
        )


@dataclass(frozen=True, kw_only=True)
class MembershipEvent:
    """Where a worker is and what it serves; sent again and again while it lives."""

    worker: WorkerId
    role: Role
    dc: Datacenter
    address: str  # host:port of its gRPC server
    fingerprint: ModelFingerprint = NO_FINGERPRINT
    layout_hash: LayoutHash = NO_LAYOUT
    model_name: str = ""
    epoch: Epoch
    capacity: int = 0  # engines: tokens of KV; pools: bytes
    pool_address: str = ""  # the pool that this worker reads and writes; a pool's own address
    left: bool = False
    codec_threads: int = 1  # engines: threads that encode and decode entries

    def leaving(self) -> Self:
        return replace(self, left=True)

    def encode(self) -> bytes:
        return pb.MembershipEvent(
            version=EVENT_VERSION,
            worker=self.worker,
            role=self.role,
            dc=self.dc,
            address=self.address,
            fingerprint=self.fingerprint,
            layout_hash=self.layout_hash,
            model_name=self.model_name,
            epoch=self.epoch,
            capacity=self.capacity,
            pool_address=self.pool_address,
            left=self.left,
            codec_threads=self.codec_threads,
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadEvent."""
        message = _parsed(pb.MembershipEvent(), data)
        if message.role not in get_args(Role):
            raise BadEvent(f"unknown role {message.role!r}")
        return cls(
            worker=WorkerId(_present(message.worker, "worker")),
            role=cast(Role, message.role),
            dc=Datacenter(message.dc),
            address=_present(message.address, "address"),
            fingerprint=ModelFingerprint(message.fingerprint),
            layout_hash=LayoutHash(message.layout_hash),
            model_name=message.model_name,
            epoch=Epoch(_positive(message.epoch, "epoch")),
            capacity=message.capacity,
            pool_address=message.pool_address,
            left=message.left,
            codec_threads=max(1, message.codec_threads),
        )


class LinkLoad(NamedTuple):
    """How a pool's link from another datacenter does."""

    peer_dc: Datacenter
    goodput_bytes_per_s: float  # smoothed, over the time in which there was something to carry; 0: not known
    backlog_bytes: int  # asked for and not here yet, before any codec
    crossed_bytes: int  # payload, since the pool's start
    round_trip_s: float = 0.0  # smoothed; 0: not known


@dataclass(frozen=True, kw_only=True)
class LoadEvent:
    """How busy a worker was at `at_ms` (milliseconds since 1970)."""

    worker: WorkerId
    epoch: Epoch
    running: int
    waiting: int
    kv_usage: float  # 0 to 1
    speed_tokens_per_s: float  # measured: prefill speed of a prefill worker, decode speed of a decode worker
    at_ms: int
    links: tuple[LinkLoad, ...] = ()  # of a pool, one for each datacenter that it has pulled from
    suspects: tuple[str, ...] = ()  # of a pool: addresses of the peers that it pulls nothing from at present
    step_profile: StepProfile | None = None  # of an engine
    queued_s: float = 0.0  # of an engine: what prompts here still take, as it predicts
    queued_tokens: int = 0  # of prompts, still to be computed
    context_tokens: int = 0  # of running requests together
    step_tokens: int = 0  # most prompt tokens that a step computes at present
    busy: float = 0.0  # share of the last seconds that prompts added to steps, 0 to 1
    arrivals_per_s: float = 0.0  # requests taken, over the last seconds
    hand_over_bytes_per_s: float = 0.0  # of an engine: KV from or to its pool, while there was some to move; 0: unknown
    tier_bytes_per_s: float = 0.0  # of a pool: reads from the object tier, while there were some; 0: unknown
    max_batch: int = 0  # of a decode worker: requests that hold KV memory at a time; 0: unknown
    answer_tokens: float = 0.0  # of a decode worker: mean length of the answers that ended lately; 0: none did

    def encode(self) -> bytes:
        return pb.LoadEvent(
            version=EVENT_VERSION,
            worker=self.worker,
            epoch=self.epoch,
            running=self.running,
            waiting=self.waiting,
            kv_usage=self.kv_usage,
            tokens_per_s=self.speed_tokens_per_s,
            at_ms=self.at_ms,
            links=[pb.LinkLoad(**link._asdict()) for link in self.links],
            suspects=self.suspects,
            step_profile=None if self.step_profile is None else pb.StepProfile(**self.step_profile._asdict()),
            **{name: getattr(self, name) for name in _FIGURES},
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadEvent."""
        message = _parsed(pb.LoadEvent(), data)
        if not 0.0 <= message.kv_usage <= 1.0:
            raise BadEvent(f"kv_usage {message.kv_usage} is not between 0 and 1")
        if not 0.0 <= message.tokens_per_s < float("inf"):
            raise BadEvent(f"tokens_per_s {message.tokens_per_s} is not a speed")
        return cls(
            worker=WorkerId(_present(message.worker, "worker")),
            epoch=Epoch(_positive(message.epoch, "epoch")),
            running=message.running,
            waiting=message.waiting,
            kv_usage=message.kv_usage,
            speed_tokens_per_s=message.tokens_per_s,
            at_ms=message.at_ms,
            links=tuple(_link(link) for link in message.links),
            suspects=tuple(message.suspects),
            step_profile=_profile(message),
            **{name: _figure(message, name) for name in _FIGURES},
        )


_FIGURES = (
    "queued_s",
    "queued_tokens",
    "context_tokens",
    "step_tokens",
    "busy",
    "arrivals_per_s",
    "hand_over_bytes_per_s",
    "tier_bytes_per_s",
    "max_batch",
    "answer_tokens",
)
"""Fields of a load event that are numbers, not negative, and 0 where a process says nothing of them."""

Event = PlacementEvent | MembershipEvent | LoadEvent

_EVENTS: dict[str, type[PlacementEvent] | type[MembershipEvent] | type[LoadEvent]] = {
    TOPIC_PLACEMENT: PlacementEvent,
    TOPIC_MEMBERSHIP: MembershipEvent,
    TOPIC_LOAD: LoadEvent,
}


def decode_event(topic: str, value: bytes) -> Event:
    """Decode a record of one of our topics, or of a copy of one. Raises BadEvent."""
    kind = _EVENTS.get(original_name(topic, _EVENTS))
    if kind is None:
        raise BadEvent(f"no events are known on topic {topic!r}")
    return kind.decode(value)


def _parsed(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise BadEvent(f"{len(data)} bytes are not a {type(message).__name__}") from None
    if message.version != EVENT_VERSION:
        raise BadEvent(f"{type(message).__name__} has version {message.version}; this process reads {EVENT_VERSION}")
    return message


def _keys(packed: bytes) -> bytes:
    if len(packed) % KEY_BYTES:
        raise BadEvent(f"{len(packed)} bytes are no sequence of block keys of {KEY_BYTES} bytes")
    return packed


def _link(message: pb.LinkLoad) -> LinkLoad:
    goodput = message.goodput_bytes_per_s
    if not 0.0 <= goodput < float("inf"):
        raise BadEvent(f"goodput_bytes_per_s {goodput} is not a speed")
    peer_dc = Datacenter(_present(message.peer_dc, "peer_dc"))
    round_trip_s = _figure(message, "round_trip_s")
    return LinkLoad(peer_dc, goodput, message.backlog_bytes, message.crossed_bytes, round_trip_s)


def _profile(message: pb.LoadEvent) -> StepProfile | None:
    if not message.HasField("step_profile"):
        return None
    return StepProfile(*(_figure(message.step_profile, name) for name in StepProfile._fields))


def _figure(message: pb.LoadEvent | pb.LinkLoad | pb.StepProfile, name: str) -> Any:
    value = getattr(message, name)
    if not 0 <= value < float("inf"):
        raise BadEvent(f"{name} {value} is negative or no number")
    return value


def _present(text: str, name: str) -> str:
    if not text:
        raise BadEvent(f"{name} is empty")
    return text


def _positive(value: int, name: str) -> int:
    if value <= 0:
        raise BadEvent(f"{name} is {value}")
    return value
