"""`prfaas key`: what it prints is a file that a gateway takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from services.gateway.tenants.file import digest_of, read_accounts
from tests.support.suite import ROOT

PAGE = (ROOT / "docs" / "tenants.md").read_text()
(COMMANDS,) = re.findall(r"<!-- run by tests/contract/cli/test_key.py -->\n\n```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_documented_commands_make_a_file_of_the_keys_that_they_show(tmp_path: Path) -> None:
    told = shell(COMMANDS.replace("prfaas ", f"{sys.executable} -m deploy.cli "), tmp_path)
    accounts = read_accounts(tmp_path / "keys.toml")
    keys = [line.rpartition(" ")[2] for line in told.splitlines()]
    assert [account.name for key in keys if (account := accounts.of_key(key))] == ["acme", "operators"]
    assert not any(key in (tmp_path / "keys.toml").read_text() for key in keys)


def test_a_tenant_may_have_any_name(tmp_path: Path) -> None:
    names = ('two words, a "quote"', "ümlaut")
    for name, option in zip(names, ("--new-file", ""), strict=True):
        shell(f"{sys.executable} -m deploy.cli key '{name}' {option} >> keys.toml", tmp_path)
    assert len(read_accounts(tmp_path / "keys.toml")) == 2


def test_json_has_the_key_and_its_hash(tmp_path: Path) -> None:
    shell(f"{sys.executable} -m deploy.cli key acme --json > made.json", tmp_path)
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["digest"] == digest_of(made["key"])
    assert set(made) == {"tenant", "key", "digest"}


def shell(commands: str, folder: Path) -> str:
    """Run commands in a folder; return what they write to stderr."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr
