"""The headers that say what latency a request asks for."""

import pytest
from multidict import CIMultiDict

from services.gateway.admission.slo import MAX_MS, default_slo, slo_of
from services.gateway.routing.plan import NO_SLO, Slo
from services.gateway.settings import GatewaySettings
from shared.errors import BadRequest


def test_headers_are_milliseconds_and_take_the_place_of_the_default() -> None:
    default = Slo(2.0, 0.05)
    assert slo_of({}, default) is default
    assert slo_of({"x-slo-ttft-ms": "250"}, default) == Slo(0.25, 0.05)
    assert slo_of({"x-slo-tpot-ms": "12.5"}, NO_SLO) == Slo(None, 0.0125)
    assert slo_of(CIMultiDict({"X-SLO-TTFT-MS": " 250 ", "X-Slo-Tpot-Ms": "8"}), NO_SLO) == Slo(0.25, 0.008)


@pytest.mark.parametrize("text", ["", "0", "-5", "soon", "1e3", "nan", "inf", "1_000", "٣", "0.0", str(MAX_MS + 1)])
@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
def test_anything_else_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        slo_of({name: text}, NO_SLO)
    assert refused.value.param == name


def test_settings_of_0_ask_nothing() -> None:
    assert default_slo(GatewaySettings()) == NO_SLO
    assert default_slo(GatewaySettings(slo_ttft_s=1.5)) == Slo(1.5, None)
