"""`python -m services.gateway.plan`: exit status, tables, JSON, plots."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.plan.__main__ import main
from tests.support.suite import ROOT
from tests.unit.gateway.plan.conftest import Write

PAPER = ROOT / "examples/plans/paper.toml"
MODELS = ROOT / "examples/plans/models.toml"


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "services.gateway.plan"]
    done = subprocess.run([*command, PAPER], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "PrfaaS-PD" in done.stdout
    wrong = subprocess.run([*command, "none.toml"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "none.toml: cannot be read: No such file or directory\n"


def test_the_table_names_the_averaging_the_stage_that_binds_and_the_ttft_model(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "throughputs by E[T(L)], the mean of the times; TTFT of an empty system"
    assert any(line.startswith("throughputs by T(E[L]), the time of the mean length: Lambda ") for line in lines)
    assert [line.split()[2:] for line in lines if line.startswith("bound by")] == [["prfaas", "pd_prefill", "prfaas"]]


def test_a_deployment_that_serves_nothing_has_no_gain(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """One instance alone cannot prefill and decode."""
    assert main([str(write(then="[homogeneous]\ninstances = 1\n"))]) == 0
    (gains,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Lambda / ")]
    assert gains.split()[3:] == ["-", "-", "-"]


def test_the_slo_of_ttft_is_judged(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("token_s = 0.5", "token_s = 0.5\nttft_p90_s = 40"))
    assert main([str(path)]) == 0
    told = "SLO of TTFT P90 (40 s) in an empty system: PrfaaS-PD meets it, homogeneous PD misses it, "
    assert told + "naive heterogeneous meets it" in capsys.readouterr().out
    assert main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slo"]["met_when_idle"]["homogeneous_pd"] is False


def test_json_has_all_plans_under_both_averagings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(PAPER), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["averaging"] == "T(E[L])"
    assert found["plans"]["prfaas_pd"]["requests_per_s"] == pytest.approx(3.30, abs=5e-3)
    assert found["plans"]["homogeneous_pd"]["threshold_tokens"] is None
    other = found["plans_by_other_averaging"]["prfaas_pd"]
    assert (other["averaging"], other["requests_per_s"]) == ("E[T(L)]", pytest.approx(3.24, abs=5e-3))
    assert {"deployment", "name", "published", "ours", "difference"} == found["published"][0].keys()


def test_json_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(MODELS), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["models"][0]
    assert (first["model"], first["instance_gbit_s"]) == ("Kimi Linear", pytest.approx([1.19, 2.29, 3.87, 4.88]))


def test_a_plot_is_a_picture(write: Write, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    assert main([str(write()), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_an_error(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(MODELS), "--plot", "x.png"]) == 2
    assert "only files of the kind capacity can be plotted" in capsys.readouterr().err
    for name in ("none/plan.png", "plan.nosuchformat"):
        assert main([str(write()), "--plot", str(tmp_path / name)]) == 2
        assert f"{tmp_path / name}: cannot be written: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(write()), "--plot", str(tmp_path / "plan.png")]) == 2
    assert capsys.readouterr().err == "--plot needs matplotlib: install the extra `bench`\n"
