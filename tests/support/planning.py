"""A small planning case whose numbers can be worked out by hand, and what Hypothesis draws cases from."""

import numpy as np
from hypothesis import strategies as st

from services.gateway.routing.planning.case import (
    Averaging,
    DecodePoint,
    PdCluster,
    PlanningCase,
    PrfaasCluster,
    WideLink,
)
from services.gateway.routing.planning.lengths import EmpiricalLengths, LengthDistribution, TruncatedLogNormal
from services.gateway.routing.planning.profiles import LengthProfile, PolynomialProfile, TabulatedProfile

FOUR_LENGTHS = EmpiricalLengths.of([100, 200, 300, 600])


def by_hand(averaging: Averaging = Averaging.MEAN_TIME, **changes: object) -> PlanningCase:
    """Four lengths, equally likely. T = (l/100)^2 s away and 3 (l/100)^2 s at home; KV of 1 MB a token; 8 Gbit/s."""
    parts: dict[str, object] = {
        "lengths": FOUR_LENGTHS,
        "output_tokens": 10.0,
        "kv_bytes": PolynomialProfile((0.0, 1e6)),
        "prfaas": PrfaasCluster(PolynomialProfile((0.0, 0.0, 1.0), 100), (9,)),
        "pd": PdCluster(PolynomialProfile((0.0, 0.0, 3.0), 100), DecodePoint(2, 0.5), 4),
        "link": WideLink(8.0),
        "averaging": averaging,
    }
    return PlanningCase(**{**parts, **changes})  # type: ignore[arg-type]


positive = st.floats(1e-3, 1e3)


@st.composite
def length_distributions(draw: st.DrawFn) -> LengthDistribution:
    if draw(st.booleans()):
        return EmpiricalLengths.of(draw(st.lists(st.integers(1, 200_000), min_size=1, max_size=40)))
    low = draw(st.integers(1, 1000))
    high = draw(st.integers(low + 1, 200_000))
    return TruncatedLogNormal(draw(st.floats(-2, 16)), draw(st.floats(0.01, 4)), low, high)


@st.composite
def length_profiles(draw: st.DrawFn) -> LengthProfile:
    """Rising and positive, convex if they are polynomials."""
    if draw(st.booleans()):
        coefficients = draw(st.tuples(positive, st.floats(0, 1), st.floats(0, 0.1)))
        return PolynomialProfile(coefficients, 1024)
    values = sorted(draw(st.lists(positive, min_size=2, max_size=6)))
    return TabulatedProfile(tuple(float(2**power) for power in range(8, 8 + len(values))), tuple(values))


@st.composite
def planning_cases(draw: st.DrawFn) -> PlanningCase:
    return PlanningCase(
        lengths=draw(length_distributions()),
        output_tokens=draw(st.floats(1, 5000)),
        kv_bytes=draw(length_profiles()),
        prfaas=PrfaasCluster(draw(length_profiles()), tuple(draw(st.sets(st.integers(0, 9), min_size=1, max_size=3)))),
        pd=PdCluster(
            draw(length_profiles()),
            DecodePoint(draw(st.integers(1, 100)), draw(st.floats(1e-3, 0.2))),
            draw(st.integers(1, 9)),
        ),
        link=WideLink(draw(st.floats(1e-9, 1e-3)), draw(st.floats(0.01, 1))),
        averaging=draw(st.sampled_from(Averaging)),
    )


def some_thresholds(case: PlanningCase, number: int = 17) -> np.ndarray:
    """Return thresholds from none that is offloaded to all that is."""
    return np.linspace(0, case.lengths.max_tokens, number)
