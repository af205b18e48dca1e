"""The examples reproduce arXiv 2604.15039."""

import re
from dataclasses import replace

import numpy as np
import pytest

from services.gateway.plan.__main__ import answer_of
from services.gateway.plan.answers import CapacityAnswer, EgressAnswer
from services.gateway.plan.schema import PublishedTables
from services.gateway.routing.planning.capacity import CapacityPlan, Stage, plan_of
from services.gateway.routing.planning.case import Averaging, Division, PlanningCase, threshold_grid
from services.gateway.routing.planning.profiles import PolynomialProfile, ScaledProfile
from services.gateway.routing.planning.search import rate_surface
from tests.support.suite import ROOT

EXAMPLES = ROOT / "examples/plans"
FACTORS = (1.21, 3.16)
"""Of the H20's prefill time to the H200's: the constant term, and those that grow with the length."""


@pytest.fixture(scope="module")
def paper() -> CapacityAnswer:
    answer = answer_of(EXAMPLES / "paper.toml")
    assert isinstance(answer, CapacityAnswer)
    return answer


def best(case: PlanningCase) -> CapacityPlan:
    return plan_of(case, rate_surface(case, threshold_grid(case.lengths, 100)).best())


def test_the_case_study_is_within_the_targets(paper: CapacityAnswer) -> None:
    plan = paper.ours.prfaas_pd
    assert plan.threshold_tokens is not None
    assert 17_400 <= plan.threshold_tokens <= 19_400
    assert (plan.prfaas_instances, plan.prefill_instances, plan.decode_instances) == (4, 3, 5)
    assert 3.19 <= plan.requests_per_s <= 3.31
    assert paper.ours.homogeneous_pd.requests_per_s == pytest.approx(2.11, rel=0.03)
    assert paper.ours.naive_heterogeneous.requests_per_s == pytest.approx(2.45, rel=0.03)
    assert 12 <= plan.egress_gbit_s <= 13
    assert plan.bound_by in (Stage.PRFAAS, Stage.PD_PREFILL), "the paper's system is short of prefill"


def test_every_entry_of_the_papers_table_is_within_3_percent(paper: CapacityAnswer) -> None:
    assert paper.file.published is not None
    figures = {(figure.deployment, figure.name): figure for figure in paper.published()}
    about = figures.pop(("prfaas_pd", "egress_gbit_s"))  # the paper's text says "about 13"
    assert about.difference == pytest.approx(0, abs=0.05)
    assert len(figures) == 29
    differences = {key: figure.difference for key, figure in figures.items()}
    assert differences == {key: pytest.approx(0, abs=0.03) for key in figures}


def test_lambda_of_the_papers_own_throughputs_is_the_papers(paper: CapacityAnswer) -> None:
    recombined = [figure for figure in paper.published() if "by (6)" in figure.name]
    assert [figure.published for figure in recombined] == [3.24, 2.11, 2.45]
    assert [figure.ours for figure in recombined] == [pytest.approx(value, rel=0.005) for value in (3.24, 2.11, 2.45)]


def test_at_the_papers_own_division_the_stages_are_the_papers(paper: CapacityAnswer) -> None:
    plan = plan_of(paper.case, Division(19_400, 4, 3, 5))
    rates = (plan.prfaas_per_s, plan.pd_prefill_per_s, plan.pd_decode_per_s, plan.requests_per_s)
    assert rates == pytest.approx((1.61, 1.64, 3.91, 3.24), rel=0.03)


def test_the_mean_of_the_times_overstates_nothing(paper: CapacityAnswer) -> None:
    """Instances sustain less than the paper's way of averaging promises: by up to 6 %."""
    for name in ("prfaas_pd", "homogeneous_pd", "naive_heterogeneous"):
        promised, sustained = getattr(paper.ours, name), getattr(paper.others, name)
        assert sustained.averaging is Averaging.MEAN_TIME
        assert 1 < promised.requests_per_s / sustained.requests_per_s < 1.06
    assert paper.others.prfaas_pd.requests_per_s == pytest.approx(3.24, abs=5e-3)


def test_the_h20_is_the_h200_with_two_factors(paper: CapacityAnswer) -> None:
    """They are those that give both published Th_pdp: that is what the example says, and why it has them."""
    h200 = PolynomialProfile((0.389, 0.04206, 9.94e-5), 1024)
    tokens = np.array([128.0, 8192.0, 131_072.0])
    fixed, growing = FACTORS
    assert paper.case.pd.prefill_s(tokens) == pytest.approx(fixed * 0.389 + growing * (h200(tokens) - 0.389), rel=1e-3)
    # T(E[L]) is linear in both factors: two throughputs determine them.
    means = np.array([10_223.6, 27_485.7])  # E[L | L <= 19,400] and E[L]
    terms = np.column_stack((np.full(2, 0.389), h200(means) - 0.389))
    assert np.linalg.solve(terms, [3 / 1.64, 9 / 2.11]) == pytest.approx(FACTORS, abs=5e-3)


@pytest.mark.parametrize(
    ("factor", "threshold", "per_s"), [(2.2, 19_300, 3.312), (2.4, 18_300, 3.245), (2.6, 17_400, 3.187)]
)
def test_one_factor_for_the_h20_gives_the_range_of_the_targets(
    paper: CapacityAnswer, factor: float, threshold: float, per_s: float
) -> None:
    slower = ScaledProfile(paper.case.prfaas.prefill_s, factor)
    plan = best(replace(paper.case, pd=replace(paper.case.pd, prefill_s=slower)))
    assert (plan.prefill_instances, plan.decode_instances) == (3, 5)
    assert plan.threshold_tokens == threshold
    assert plan.requests_per_s == pytest.approx(per_s, abs=2e-3)


def test_the_papers_own_mean_ttft_shows_that_its_throughputs_are_of_the_mean_length() -> None:
    """Nine instances that take 4.44 s on the mean sustain 2.03 req/s, not the 2.11 of the table."""
    published = answer_of(EXAMPLES / "paper.toml")
    assert isinstance(published, CapacityAnswer)
    alone = (published.file.published or PublishedTables()).homogeneous_pd
    assert alone.ttft_mean_s is not None
    assert alone.pd_prefill_per_s is not None
    assert 9 / alone.ttft_mean_s < 0.97 * alone.pd_prefill_per_s


def test_hybrid_models_fit_the_link_and_dense_ones_do_not() -> None:
    answer = answer_of(EXAMPLES / "models.toml")
    assert isinstance(answer, EgressAnswer)
    carried = {demand.model: demand.is_carried for demand in answer.demands}
    assert carried == {
        "Kimi Linear": True,
        "MiMo-V2-Flash": True,
        "Qwen3.5-397B": True,
        "Ring-2.5-1T": True,
        "MiniMax-M2.5 (dense)": False,
        "Qwen3-235B (dense)": False,
    }
    dense = next(demand for demand in answer.demands if demand.model.startswith("MiniMax"))
    assert dense.cluster_gbit_s.tolist() == pytest.approx([19.76, 131.48, 239.72, 191.28])
    assert dense.carried_instances.tolist() == [20, 3, 1, 2]


def test_the_page_of_results_shows_what_the_command_prints() -> None:
    page = (ROOT / "docs/results/planner.md").read_text()
    shown = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    printed = ["\n".join(answer_of(EXAMPLES / name).lines()) + "\n" for name in ("paper.toml", "models.toml")]
    assert shown == printed
