"""What a case refuses, which decode batch an SLO allows, and which thresholds are tried."""

import numpy as np
import pytest

from services.gateway.routing.planning.case import (
    DecodePoint,
    PdCluster,
    PrfaasCluster,
    WideLink,
    fastest_decode,
    threshold_grid,
)
from services.gateway.routing.planning.profiles import PolynomialProfile
from tests.support.planning import FOUR_LENGTHS, by_hand

ONE = PolynomialProfile((1.0,))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DecodePoint(0, 1.0), "at least one request"),
        (lambda: DecodePoint(1, 0.0), "decode step"),
        (lambda: PrfaasCluster(ONE, ()), "number of instances"),
        (lambda: PrfaasCluster(ONE, (-1, 2)), "not below 0"),
        (lambda: PdCluster(ONE, DecodePoint(1, 1), 0), "at least one instance"),
        (lambda: WideLink(0.0), "capacity"),
        (lambda: WideLink(1.0, 1.1), "usable share"),
        (lambda: by_hand(output_tokens=0.0), "output tokens"),
        (lambda: by_hand(kv_bytes=PolynomialProfile((-1.0,))), "must be positive, but is -1 at 100 tokens"),
        (lambda: threshold_grid(FOUR_LENGTHS, 0.0), "step"),
    ],
)
def test_a_case_that_cannot_be_is_refused(make: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()  # type: ignore[operator]


def test_the_decode_batch_is_the_fastest_one_within_the_slo() -> None:
    points = [DecodePoint(1, 0.010), DecodePoint(20, 0.025), DecodePoint(40, 0.050), DecodePoint(50, 0.080)]
    assert fastest_decode(points, 0.025) == DecodePoint(20, 0.025)
    assert fastest_decode(points, 0.060) == DecodePoint(20, 0.025), "of equally fast ones the smaller batch"
    assert fastest_decode(points[:1], 1.0) == DecodePoint(1, 0.010)
    with pytest.raises(ValueError, match=r"at most 0\.001 s"):
        fastest_decode(points, 0.001)


def test_the_grid_goes_from_all_offloaded_to_none() -> None:
    assert threshold_grid(FOUR_LENGTHS, 250).tolist() == [0, 250, 500, 600]
    assert threshold_grid(FOUR_LENGTHS, 300).tolist() == [0, 300, 600]
    assert threshold_grid(FOUR_LENGTHS, 9999).tolist() == [0, 600]
    assert np.unique(threshold_grid(FOUR_LENGTHS, 0.7)).size == 859
