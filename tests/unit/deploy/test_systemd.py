"""The unit and the settings of deploy/systemd are sound, and start what there is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.cachepool.settings import PoolSettings
from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from shared.config import ServiceSettings, load
from tests.support.env_files import read_env
from tests.support.suite import ROOT

FOLDER = ROOT / "deploy/systemd"
UNIT = (FOLDER / "prfaas@.service").read_text()
SETTINGS: dict[str, type[ServiceSettings]] = {
    "cachepool": PoolSettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "gateway": GatewaySettings,
}
MACHINES = {"east": {"cachepool", "prefill"}, "west": {"cachepool", "decode", "gateway"}}
PAGES = (ROOT / "docs/settings.md", ROOT / "docs/security/settings.md")
KNOWN = {name for page in PAGES for name in re.findall(r"`(PRFAAS_\w+)`", page.read_text())}


@pytest.mark.parametrize("dc", MACHINES)
def test_the_services_of_a_machine_have_right_settings_and_ports_of_their_own(dc: str) -> None:
    services = {path.stem for path in (FOLDER / dc).iterdir()} - {"machine"}
    assert services == MACHINES[dc]
    used: list[int] = []
    for service in services:
        environ = read_env(FOLDER / dc / "machine.env") | read_env(FOLDER / dc / f"{service}.env")
        assert {name for name in environ if name.startswith("PRFAAS_")} <= KNOWN
        settings = load(SETTINGS[service], environ)
        assert (settings.dc, settings.worker_id) == (dc, f"{service}-{dc}")
        used += [settings.http_port, *([settings.grpc_port] if service != "gateway" else [])]
        if isinstance(settings, PoolSettings):
            used.append(settings.lane_port)
            assert str(settings.lane_folder) == "/run/prfaas"
            assert read_env(FOLDER / dc / "machine.env")["PRFAAS_POOL"] == f"{settings.grpc_host}:{settings.grpc_port}"
        stop_s = float(re.findall(r"TimeoutStopSec=(\d+)", UNIT)[0])
        assert stop_s > settings.drain_s + 10
    assert len(set(used)) == len(used)
    assert 0 not in used


def test_the_unit_starts_a_service_for_each_file() -> None:
    assert re.findall(r"ExecStart=(.*)", UNIT) == ["/opt/prfaas/bin/python -m services.%i"]
    assert re.findall(r"EnvironmentFile=(.*)", UNIT) == ["/etc/prfaas/machine.env", "/etc/prfaas/%i.env"]
    for service in SETTINGS:
        assert (ROOT / "services" / service / "__main__.py").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_understands_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    unit = tmp_path / "prfaas@cachepool.service"
    unit.write_text(UNIT.replace("/opt/prfaas/bin/python", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout
