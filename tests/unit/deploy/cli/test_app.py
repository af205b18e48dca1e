"""The program as a shell meets it: help, version, completion, and what is said when something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import __main__ as program
from deploy.cli.app import app
from deploy.cli.version import installed_version
from tests.support.suite import ROOT

COMMANDS = {"up", "status", "trace", "chat", "plan", "doctor"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(f" {command} " in shown.output for command in COMMANDS)


def test_without_a_command_the_help_is_shown() -> None:
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 2
    assert "Commands" in shown.output


def test_the_version_is_that_of_the_installation() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"prfaas {installed_version()}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str) -> None:
    completed = {"COMP_WORDS": "prfaas ", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "prfaas "}
    if shell == "fish":
        completed["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = run(_PRFAAS_COMPLETE=f"complete_{shell}", **completed)
    assert all(command in done.stdout for command in COMMANDS), done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["chat", "hi", "--gateway", "localhost:8000"], "did you mean http://localhost:8000"),
        (["chat", "hi", "--max-tokens", "0"], "max-tokens"),
        (["plan"], "FILE.toml"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["chat", "hi"]])
def test_without_a_gateway_a_command_ends_with_3_in_one_line(arguments: list[str]) -> None:
    done = run(*arguments, PRFAAS_GATEWAY="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "prfaas: no gateway answers at http://127.0.0.1:1 (Connection refused); "
        "start one with `prfaas up`, or name it with --gateway\n"
    )


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')")
    done = run("status", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "prfaas: the package typer is missing: pip install 'prfaas[cli]'\n"


def test_an_old_python_is_told_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert program.main() == 1
    assert capsys.readouterr().err.startswith("prfaas: Python 3.11 or newer is needed; this is 3.10, ")


def test_the_planner_is_called_with_its_options() -> None:
    paper = str(ROOT / "examples/plans/paper.toml")
    shown = CliRunner().invoke(app, ["plan", paper])
    assert shown.exit_code == 0
    assert "PrfaaS-PD" in shown.output
    assert '"prfaas_pd"' in CliRunner().invoke(app, ["plan", paper, "--json"]).output
    wrong = CliRunner().invoke(app, ["plan", "none.toml"])
    assert wrong.exit_code == 2
    assert wrong.output == "none.toml: cannot be read: No such file or directory\n"
