"""`prfaas certs`: what it makes, what it does not overwrite, and what `prfaas doctor` says of it."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli.app import app
from deploy.cli.certs.folder import CertificateFolder
from deploy.cli.doctor.certificates import certificates
from deploy.cli.doctor.finding import Level
from deploy.up.trust import reached, trust
from shared.security.files import CertificateFiles, read_certificate
from shared.security.identity import Identity, ServiceRole
from tests.support.certificates import DAYS, SuiteAuthority

DECODE = Identity(ServiceRole.DECODE, "west")
COMMANDS = {"decode-west": "exec env PRFAAS_DC=west python -m services.decode", "ready": "python -m deploy.ready"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["certs", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert run("init", "--folder", str(tmp_path / "certs")).exit_code == 0
    return tmp_path / "certs"


def files_in(folder: Path, name: str) -> CertificateFiles:
    return CertificateFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def test_an_issued_certificate_says_who_it_is_and_fits_its_files(folder: Path) -> None:
    done = run("issue", "decode", "west", "--folder", str(folder), "--host", "decode.example.com", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["identity"], row["state"]) == ("decode-west", DECODE.uri, "ok")
    assert row["hosts"] == ["localhost", "decode.example.com", "127.0.0.1", "::1"]
    assert read_certificate(files_in(folder, "decode-west")).identity == DECODE


def test_keys_are_their_user_s_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run("suite", "--dc", "west", "--folder", str(tmp_path / "open"))
    finally:
        os.umask(before)
    keys = list((tmp_path / "open").glob("*.key"))
    assert len(keys) == 1 + len(ServiceRole)
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_nothing_is_overwritten_unless_it_is_asked_for(folder: Path) -> None:
    issue = ("issue", "decode", "west", "--folder", str(folder))
    assert run(*issue).exit_code == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for again in (issue, ("init", "--folder", str(folder))):
        done = run(*again)
        assert done.exit_code == 1
        assert "exists; --force overwrites it" in done.output
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run(*issue, "--force").exit_code == 0
    assert (folder / "decode-west.key").read_bytes() != before[folder / "decode-west.key"]


def test_suite_makes_what_is_absent(folder: Path) -> None:
    ca = (folder / "ca.pem").read_bytes()
    made = json.loads(run("suite", "--dc", "east", "--dc", "west", "--folder", str(folder), "--json").stdout)
    assert len(made) == 2 * len(ServiceRole)
    assert (folder / "ca.pem").read_bytes() == ca
    assert json.loads(run("suite", "--dc", "west", "--folder", str(folder), "--json").stdout) == []


def test_renew_takes_those_that_expire_soon_with_their_hosts(folder: Path) -> None:
    for role, days in (("decode", "5"), ("prefill", "80")):
        run("issue", role, "west", "--folder", str(folder), "--host", "a.example.com", "--days", days)
    kept = (folder / "prefill-west.pem").read_bytes()
    (row,) = json.loads(run("renew", "--folder", str(folder), "--json").stdout)
    assert row["name"] == "decode-west"
    assert "a.example.com" in row["hosts"]
    assert (folder / "prefill-west.pem").read_bytes() == kept
    read_certificate(files_in(folder, "decode-west"))


def test_a_member_does_not_outlive_its_authority(tmp_path: Path) -> None:
    made = CertificateFolder(tmp_path)
    made.init(10, is_forced=False)
    made.issue(DECODE, [], 90, is_forced=False)
    ca, member = [entry.shown for entry in made.entries()]
    assert ca is not None
    assert member is not None
    assert ca.not_after == member.not_after


def test_show_names_what_is_of_no_use(folder: Path) -> None:
    run("suite", "--dc", "west", "--folder", str(folder))
    assert run("show", "--folder", str(folder)).exit_code == 0
    (folder / "decode-west.key").write_bytes((folder / "prefill-west.key").read_bytes())
    (folder / "gateway-west.pem").write_text("nothing")
    (folder / "cachepool-west.key").unlink()
    (folder / "operator-west.key").chmod(0o644)
    done = run("show", "--folder", str(folder), "--json")
    assert done.exit_code == 1
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert states["decode-west"] == "is not of the key beside it"
    assert states["gateway-west"].startswith("cannot be read")
    assert states["cachepool-west"] == "has no key beside it"
    assert states["operator-west"] == "others may read the key"
    assert states["prefill-west"] == states["ca"] == "ok"


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert "`prfaas certs init` makes an authority" in run("issue", "decode", "west", "--folder", nowhere).output
    assert "holds no certificates" in run("show", "--folder", nowhere).output
    done = run("issue", "decode", "West.1", "--folder", nowhere)
    assert done.exit_code == 2
    assert "use a-z, 0-9 and hyphens" in done.output


def of(folder: Path) -> dict[str, str]:
    return {"PRFAAS_SECURITY": "mtls", "PRFAAS_CERTS": str(folder)}


def test_doctor_looks_at_each_process_that_starts_here(tmp_path: Path) -> None:
    authority = SuiteAuthority(tmp_path)
    assert certificates(COMMANDS, {}).level is Level.OK
    absent = certificates(COMMANDS, of(tmp_path))
    assert absent.level is Level.FAIL
    assert "decode of west:" in absent.why
    files = authority.issue(DECODE.role, DECODE.dc)
    files.key.chmod(0o600)
    good = certificates(COMMANDS, of(tmp_path))
    assert good.level is Level.OK, good
    assert good.why.startswith("1 are good")
    files.key.chmod(0o640)
    assert "chmod 600" in certificates(COMMANDS, of(tmp_path)).why
    authority.issue(DECODE.role, DECODE.dc, days_ago=DAYS - 3)
    soon = certificates(COMMANDS, of(tmp_path))
    assert soon.level is Level.WARN
    assert "that of the decode of west expires at" in soon.why
    authority.issue(DECODE.role, DECODE.dc, days_ago=DAYS + 3)
    assert "expired at" in certificates(COMMANDS, of(tmp_path)).why


def test_tools_reach_an_encrypted_suite_by_https(folder: Path) -> None:
    assert reached("http://127.0.0.1:8000", {}) == "http://127.0.0.1:8000"
    assert reached("http://127.0.0.1:8000", of(folder)) == "https://127.0.0.1:8000"
    assert "PrfaaS authority" in str(trust(of(folder)).get_ca_certs())
    assert "PrfaaS authority" not in str(trust({}).get_ca_certs())
