"""Links into home: what they carry, and when bandwidth is scarce."""

from dataclasses import replace

import pytest

from services.gateway.cluster.view import RegistryView
from services.gateway.control.ways import LinkTerms, WideWay, ways_home
from shared.kv.codec import Codec
from tests.support.control import EAST, GBIT, NORTH, TERMS, WEST, cluster

WAY = WideWay(EAST, WEST, 100.0, is_measured=True, backlog_s=0.0, round_trip_s=0.02, crossing_bytes_per_s=0.0)


def test_each_datacenter_that_prefills_elsewhere_has_a_way() -> None:
    (way,) = ways_home(cluster(), WEST, TERMS.links, {(EAST, WEST): 50 * GBIT})
    assert (way.source, way.target, way.is_measured) == (EAST, WEST, True)
    assert way.bytes_per_s == 100 * GBIT
    assert way.use == pytest.approx(0.5)


def test_a_backlog_takes_the_time_that_the_link_takes_for_it() -> None:
    view = cluster()
    view.links.backlog_bytes[view.dcs.index(EAST), view.dcs.index(WEST)] = 200 * GBIT
    assert ways_home(view, WEST, TERMS.links, {})[0].backlog_s == pytest.approx(2.0)


def test_a_codec_lets_more_kv_cross() -> None:
    view = cluster()
    view.links.goodput_bytes_per_s[:] = 0.1 * GBIT
    (way,) = ways_home(view, WEST, LinkTerms("zstd", 1.25e9), {})
    cost = Codec.ZSTD.spec.cost
    assert cost is not None
    assert way.bytes_per_s == pytest.approx(0.1 * GBIT * cost.ratio)


def test_a_link_that_nobody_has_measured_has_the_rate_that_routing_assumes() -> None:
    view = cluster()
    view.links.goodput_bytes_per_s[:] = 0
    (way,) = ways_home(view, WEST, TERMS.links, {})
    assert (way.bytes_per_s, way.is_measured) == (1.25e9, False)


def test_where_home_is_unknown_there_is_no_way() -> None:
    assert ways_home(RegistryView(), WEST, TERMS.links, {}) == ()
    assert ways_home(cluster(), NORTH, TERMS.links, {})[0].target == NORTH


@pytest.mark.parametrize(
    ("use", "backlog_s", "was_scarce", "is_scarce"),
    [
        (0.7, 0.0, False, False),
        (0.7, 0.0, True, True),
        (0.85, 0.0, False, True),
        (0.5, 0.0, True, False),
        (0.0, 0.5, False, False),
        (0.0, 0.5, True, True),
        (0.0, 1.5, False, True),
        (0.0, 0.1, True, False),
    ],
)
def test_bandwidth_is_scarce_by_use_or_by_what_waits(
    use: float, backlog_s: float, was_scarce: bool, is_scarce: bool
) -> None:
    way = replace(WAY, crossing_bytes_per_s=use * WAY.bytes_per_s, backlog_s=backlog_s)
    assert way.is_scarce(was_scarce) is is_scarce
