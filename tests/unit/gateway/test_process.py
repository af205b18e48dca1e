"""What the gateway is as a process: no torch, little memory, all bad settings at once."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FORBIDDEN = ("torch", "transformers", "safetensors", "flash_attn")
IDLE_LIMIT_BYTES = 300 << 20


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_imports_are_light() -> None:
    code = (
        "import pathlib, re, sys, services.gateway.app;"
        f"print([m for m in {FORBIDDEN!r} if m in sys.modules]);"
        # ru_maxrss would count what pytest's own process had when it forked
        r"print(int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) * 1024)"
    )
    finished = run("-c", code)
    assert finished.returncode == 0, finished.stderr
    modules, max_rss = finished.stdout.splitlines()
    assert modules == "[]"
    assert int(max_rss) < IDLE_LIMIT_BYTES / 2  # a tokenizer comes on top


def test_bad_settings_are_all_reported_and_the_exit_code_is_2() -> None:
    finished = run(
        "-m",
        "services.gateway",
        PRFAAS_HTTP_PORT="99999",
        PRFAAS_OFFLOAD_THRESHOLD_TOKENS="-1",
        PRFAAS_CODEC="zip",
        PRFAAS_MAX_BODY_BYTES="many",
    )
    assert finished.returncode == 2, finished.stderr
    for name in ("PRFAAS_HTTP_PORT", "PRFAAS_OFFLOAD_THRESHOLD_TOKENS", "PRFAAS_CODEC", "PRFAAS_MAX_BODY_BYTES"):
        assert name in finished.stderr


def test_a_missing_model_is_named() -> None:
    finished = run("-m", "services.gateway", PRFAAS_MODEL="/nowhere/model", PRFAAS_HTTP_PORT="0")
    assert finished.returncode == 1
    assert "/nowhere/model" in finished.stdout + finished.stderr
