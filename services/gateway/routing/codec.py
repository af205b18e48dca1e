"""Which codec the blocks of a plan travel in: a pure function of the way they go and of what the request allows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import Member
from services.gateway.settings import AUTO
from shared.ids import Datacenter
from shared.kv.codec import Codec, CodecCost, Fidelity

COSTS = {codec: codec.spec.cost for codec in Codec if codec.spec.cost is not None}
"""The codecs that may be chosen automatically."""


class Way(NamedTuple):
    """What blocks go through from the engine that computes them to the one that uses them."""

    from_dc: Datacenter
    to_dc: Datacenter
    goodput_bytes_per_s: float = 0.0  # of the link between them; 0: not known
    encode_threads: int = 1
    decode_threads: int = 1
    is_one_host: bool = False  # both pools are on it


def way_between(dcs: Sequence[Datacenter], links: Links, maker: Member, user: Member) -> Way:
    """Return what is known of the way between two engines."""
    goodput = link_goodput(dcs, links, maker.dc, user.dc)
    is_one_host = _is_one_host(maker.pool_address, user.pool_address)
    return Way(maker.dc, user.dc, goodput, maker.codec_threads, user.codec_threads, is_one_host)


def link_goodput(dcs: Sequence[Datacenter], links: Links, source: Datacenter, target: Datacenter) -> float:
    """Return what the pool nodes of `target` together have pulled from `source`, in bytes/s; 0: not known."""
    return float(links.goodput_bytes_per_s[dcs.index(source), dcs.index(target)])


@lru_cache(maxsize=4096)
def choose_codec(choice: str, fidelity: Fidelity, way: Way) -> Codec:
    """Return the codec for blocks that go this way, within a datacenter or between two; `choice` is the setting's.

    Encoding, the link and decoding work at the same time on a stream of blocks, so that the slowest of them sets the
    pace. Within a datacenter nothing beats raw. A link of unknown goodput is taken to be slower than any codec, unless
    it does not leave a host: then it is taken to be quicker.
    Lossy codecs are considered only if `fidelity` allows them. A fixed choice holds for everything lossless.
    The answer is remembered: many requests go the same ways before links are reported anew.
    """
    if choice != AUTO and fidelity is Fidelity.LOSSLESS:
        return Codec[choice.upper()]
    if way.from_dc == way.to_dc or (way.is_one_host and not way.goodput_bytes_per_s):
        return Codec.RAW
    allowed = [codec for codec in COSTS if codec.spec.fidelity.satisfies(fidelity)]
    return max(allowed, key=lambda codec: (_merit(COSTS[codec], way), -codec.spec.fidelity))


def kv_bytes_per_s(codec: Codec, way: Way) -> float:
    """Return how much KV, before the codec, goes over a link whose goodput is known."""
    cost = codec.spec.cost
    return way.goodput_bytes_per_s if cost is None else _pace(cost, way)


def _merit(cost: CodecCost, way: Way) -> float:
    """Return bytes of KV per second; for an unknown link what one byte of it carries."""
    return _pace(cost, way) if way.goodput_bytes_per_s else cost.ratio


def _pace(cost: CodecCost, way: Way) -> float:
    encoding = cost.encode_bytes_per_s * way.encode_threads
    decoding = cost.decode_bytes_per_s * way.decode_threads
    return min(encoding, decoding, way.goodput_bytes_per_s * cost.ratio)


@lru_cache(maxsize=4096)
def _is_one_host(address: str, other: str) -> bool:
    return _host(address) == _host(other) != ""


def _host(address: str) -> str:
    return address.rpartition(":")[0]
