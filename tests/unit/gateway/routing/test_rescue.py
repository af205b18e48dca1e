"""How long blocks are waited for: never much longer than computing them would take."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.routing.plan import Forecast
from services.gateway.routing.rescue import GRACE_S, LATE_FACTOR, patience_s
from shared.ids import Datacenter
from shared.kv.entries import Source
from tests.support.plans import plan

seconds = st.floats(0.01, 100)


@given(seconds, st.floats(0, 1))
def test_who_waits_in_vain_is_done_within_three_times_what_decode_alone_takes(alone_s: float, part: float) -> None:
    forecast = Forecast(part * alone_s, part * alone_s, 0.01)  # it is handed over because that is sooner
    patience = patience_s(replace(plan(), forecast=forecast, alone_s=alone_s))
    assert patience is not None
    most = 2 if part * LATE_FACTOR <= 1 else 3
    assert patience + alone_s <= GRACE_S + most * alone_s * (1 + 1e-9)


@given(seconds, seconds)
def test_a_forecast_may_err_by_its_factor_or_by_what_decode_alone_takes(ttft_s: float, alone_s: float) -> None:
    patience = patience_s(replace(plan(), forecast=Forecast(ttft_s, ttft_s, 0.01), alone_s=alone_s))
    assert patience is not None
    assert patience > min(LATE_FACTOR * ttft_s, ttft_s + alone_s)


def test_what_decode_computes_anyway_is_not_waited_for() -> None:
    alone = replace(plan(0), alone_s=1.0)
    assert patience_s(alone) is None
    pulled = replace(alone, decode_sources=(Source(0, 3, Datacenter("east"), ("east:1",)),))
    assert patience_s(pulled) is not None


def test_without_a_measure_of_decode_there_is_no_end_to_patience() -> None:
    assert patience_s(replace(plan(), alone_s=math.inf)) is None
