"""Which codec a plan's blocks travel in."""

import pytest

from services.gateway.cluster.view import PoolMember
from services.gateway.cluster.workers import Member
from services.gateway.routing.codec import COSTS, Way, choose_codec, link_goodput, way_between
from shared.bus.events import LinkLoad
from shared.ids import Datacenter, WorkerId
from shared.kv.codec import Codec, Fidelity
from tests.support.members import view

EAST, WEST = Datacenter("east"), Datacenter("west")
GBIT = 125e6


@pytest.mark.parametrize("fidelity", Fidelity)
def test_within_a_datacenter_blocks_are_raw(fidelity: Fidelity) -> None:
    assert choose_codec("auto", fidelity, Way(EAST, EAST)) is Codec.RAW


@pytest.mark.parametrize(
    ("fidelity", "goodput", "expected"),
    [
        (Fidelity.LOSSLESS, 0.0, Codec.ZSTD),
        (Fidelity.LOSSLESS, GBIT, Codec.ZSTD),
        (Fidelity.LOSSLESS, 100 * GBIT, Codec.RAW),
        (Fidelity.INT8, 0.0, Codec.INT8),
        (Fidelity.INT8, 0.5 * GBIT, Codec.INT8),
        (Fidelity.INT8, 100 * GBIT, Codec.RAW),
        (Fidelity.INT4, 0.1 * GBIT, Codec.INT4),
    ],
)
def test_over_a_link_the_codec_that_keeps_it_fullest_wins(fidelity: Fidelity, goodput: float, expected: Codec) -> None:
    assert choose_codec("auto", fidelity, Way(EAST, WEST, goodput)) is expected


@pytest.mark.parametrize("fidelity", Fidelity)
def test_what_stays_on_a_host_is_raw_until_its_goodput_is_known(fidelity: Fidelity) -> None:
    way = Way(EAST, WEST, is_one_host=True)
    assert choose_codec("auto", fidelity, way) is Codec.RAW
    slow = way._replace(goodput_bytes_per_s=0.1 * GBIT)
    assert choose_codec("auto", fidelity, slow) is choose_codec("auto", fidelity, slow._replace(is_one_host=False))
    assert choose_codec("zstd", Fidelity.LOSSLESS, way) is Codec.ZSTD


@pytest.mark.parametrize(
    ("encode_threads", "decode_threads", "expected"),
    [(1, 1, Codec.RAW), (4, 1, Codec.RAW), (1, 4, Codec.RAW), (4, 4, Codec.ZSTD)],
)
def test_each_side_is_as_fast_as_its_threads(encode_threads: int, decode_threads: int, expected: Codec) -> None:
    fast = Way(EAST, WEST, 8 * GBIT, encode_threads, decode_threads)  # 1 GB/s: more than one core encodes or decodes
    assert choose_codec("auto", Fidelity.LOSSLESS, fast) is expected


@pytest.mark.parametrize("goodput", [0.0, 1e6, 1e8, 1e9, 1e11])
@pytest.mark.parametrize("fidelity", Fidelity)
def test_nothing_loses_more_than_was_allowed(fidelity: Fidelity, goodput: float) -> None:
    assert choose_codec("auto", fidelity, Way(EAST, WEST, goodput)).spec.fidelity.satisfies(fidelity)


@pytest.mark.parametrize(("choice", "codec"), [("raw", Codec.RAW), ("lz4", Codec.LZ4), ("zstd", Codec.ZSTD)])
def test_a_fixed_choice_holds_for_what_is_lossless(choice: str, codec: Codec) -> None:
    assert choose_codec(choice, Fidelity.LOSSLESS, Way(EAST, EAST)) is codec
    assert choose_codec(choice, Fidelity.LOSSLESS, Way(EAST, WEST)) is codec
    assert choose_codec(choice, Fidelity.INT4, Way(EAST, WEST)) is Codec.INT4


def test_every_codec_but_raw_gains_something() -> None:
    assert all(cost.ratio > 1 for codec, cost in COSTS.items() if codec is not Codec.RAW)


def test_goodput_is_that_of_all_nodes_that_pull() -> None:
    links = (LinkLoad(EAST, 100.0, 0, 0), LinkLoad(Datacenter("north"), 7.0, 0, 0))
    pools = {
        WorkerId("a"): PoolMember(WEST, "a:1", links),
        WorkerId("b"): PoolMember(WEST, "b:1", links),
        WorkerId("c"): PoolMember(EAST, "c:1", (LinkLoad(WEST, 1.0, 0, 0),)),
    }
    members = view(pools=pools)
    assert link_goodput(members.dcs, members.links, EAST, WEST) == 200
    assert link_goodput(members.dcs, members.links, WEST, WEST) == 0


def test_a_way_has_the_threads_of_the_engine_at_either_end() -> None:
    maker = Member(WorkerId("prefill"), EAST, "p:1", "a:1", codec_threads=4)
    user = Member(WorkerId("decode"), WEST, "d:1", "b:1", codec_threads=2)
    members = view((user,), (maker,), {WorkerId("b"): PoolMember(WEST, "b:1", (LinkLoad(EAST, 5.0, 0, 0),))})
    assert way_between(members.dcs, members.links, maker, user) == Way(
        EAST, WEST, 5.0, encode_threads=4, decode_threads=2
    )


@pytest.mark.parametrize(
    ("pool", "is_one_host"),
    [("10.0.0.1:2", True), ("10.0.0.2:1", False), ("[fe80::1]:1", False), ("pool-east:1", False)],
)
def test_a_way_knows_whether_it_leaves_a_host(pool: str, is_one_host: bool) -> None:
    maker, user = Member(WorkerId("p"), EAST, "a:1", "10.0.0.1:1"), Member(WorkerId("d"), WEST, "a:2", pool)
    members = view((user,), (maker,))
    assert way_between(members.dcs, members.links, maker, user).is_one_host is is_one_host


def test_pools_of_no_known_address_are_not_on_one_host() -> None:
    maker, user = Member(WorkerId("p"), EAST, "a:1", ""), Member(WorkerId("d"), WEST, "a:2", "")
    members = view((user,), (maker,))
    assert not way_between(members.dcs, members.links, maker, user).is_one_host
