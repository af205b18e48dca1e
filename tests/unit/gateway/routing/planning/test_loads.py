"""The means on both sides of a threshold, worked out by hand for lengths of 100, 200, 300 and 600 tokens."""

import numpy as np
import pytest

from services.gateway.routing.planning.case import Averaging
from services.gateway.routing.planning.lengths import TruncatedLogNormal
from services.gateway.routing.planning.loads import stage_loads
from tests.support.planning import by_hand

BETWEEN = np.array([200.0])


def test_the_mean_of_the_times() -> None:
    loads = stage_loads(by_hand(Averaging.MEAN_TIME), BETWEEN)
    assert (loads.long_share[0], loads.short_share[0]) == (0.5, 0.5)
    assert (loads.long_tokens[0], loads.short_tokens[0]) == pytest.approx((450, 150))
    assert loads.prfaas_s[0] == pytest.approx((9 + 36) / 2)
    assert loads.pd_prefill_s[0] == pytest.approx(3 * (1 + 4) / 2)
    assert loads.link_kv_bytes[0] == pytest.approx(450e6)


def test_the_time_of_the_mean_length() -> None:
    loads = stage_loads(by_hand(Averaging.TIME_OF_MEAN), BETWEEN)
    assert loads.prfaas_s[0] == pytest.approx(4.5**2)
    assert loads.pd_prefill_s[0] == pytest.approx(3 * 1.5**2)
    assert loads.link_kv_bytes[0] == loads.long_kv_bytes[0] == pytest.approx(450e6)


@pytest.mark.parametrize("averaging", Averaging)
def test_a_side_without_requests_has_no_means(averaging: Averaging) -> None:
    loads = stage_loads(by_hand(averaging), np.array([0.0, 600.0]))
    assert loads.long_share.tolist() == [1.0, 0.0]
    assert loads.short_share.tolist() == [0.0, 1.0]
    for above in (loads.long_tokens, loads.prfaas_s, loads.link_kv_bytes, loads.long_kv_bytes):
        assert np.isnan(above).tolist() == [False, True]
    for below in (loads.short_tokens, loads.pd_prefill_s):
        assert np.isnan(below).tolist() == [True, False]


def test_a_share_below_rounding_is_nobody() -> None:
    narrow = TruncatedLogNormal(0.0, 0.1, 1, 1000)
    loads = stage_loads(by_hand(lengths=narrow), np.array([100.0]))
    assert loads.long_share[0] == 0
    assert loads.short_share[0] == pytest.approx(1)
    assert np.isnan(loads.prfaas_s[0])
