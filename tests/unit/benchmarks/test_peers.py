"""Contestants as child processes, with a child that is this suite's own protocol around an engine of known times."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.harness import ROOT
from benchmarks.peers.found import LLAMA, TRANSFORMERS, VLLM, contestants, pythons
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.protocol import END_ID, FIRST_ID, Prompts
from shared.ids import ModelFingerprint
from shared.model.files.catalog import ModelFiles

CHILD = """
import sys
from benchmarks.peers.protocol import serve

class Engine:
    def about(self):
        print("a library that talks")
        return {"version": "1"}
    def prefill(self, prompt):
        if len(prompt) == 13:
            raise ValueError("13 tokens")
        if len(prompt) == 14:
            sys.exit("gone")
        return len(prompt) / 100
    def decode(self, prompts, steps):
        assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
        return [len(prompts), 1000.0, *([len(prompts[0])] * steps)]

serve(Engine)
"""


def start(code: str = CHILD) -> PeerProcess:
    return PeerProcess("child", [sys.executable, "-c", code], {})


def test_a_peer_answers_what_it_is_asked() -> None:
    with start() as peer:
        assert peer.about == {"version": "1"}
        assert peer.ask(do="prefill", tokens=50) == 0.5
        assert peer.ask(do="decode", batch=8, context=64, steps=4) == 64


def test_a_peer_stands_still_between_commands() -> None:
    with start() as peer:
        process = psutil.Process(peer._process.pid)
        assert process.status() == psutil.STATUS_STOPPED
        peer.ask(do="prefill", tokens=50)
        assert process.status() == psutil.STATUS_STOPPED
    assert not process.is_running()


def test_an_error_is_told_and_the_peer_goes_on() -> None:
    with start() as peer:
        with pytest.raises(PeerFailed, match="ValueError: 13 tokens"):
            peer.ask(do="prefill", tokens=13)
        with pytest.raises(PeerFailed, match="unknown command 'dance'"):
            peer.ask(do="dance")
        assert peer.ask(do="prefill", tokens=12) == 0.12


def test_a_peer_that_ends_says_why() -> None:
    with start() as peer, pytest.raises(PeerFailed, match="gone"):
        peer.ask(do="prefill", tokens=14)
    with pytest.raises(PeerFailed, match="no such engine"):
        start("raise SystemExit('no such engine')")


def test_a_peer_that_was_killed_is_closed_all_the_same() -> None:
    with start() as peer:
        os.killpg(peer._process.pid, signal.SIGKILL)
        peer._process.wait()
        with pytest.raises(PeerFailed):
            peer.ask(do="prefill", tokens=1)


def test_a_peer_ends_with_its_parent() -> None:
    code = f"""
import os, signal, sys
from benchmarks.peers.process import PeerProcess
peer = PeerProcess("child", [sys.executable, "-c", {CHILD!r}], {{}})
print(peer._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    gone, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], gone


def test_prompts_differ_and_hold_ordinary_tokens() -> None:
    prompts = Prompts(0)
    first, second = prompts.several(2, 500)
    assert first[:2] != second[:2]
    assert all(FIRST_ID <= token < END_ID for token in first + second)
    assert Prompts(0).draw(500) == first


def test_pythons_come_from_variables_or_one_folder(tmp_path: Path) -> None:
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert pythons(None, {}) == {LLAMA: None, VLLM: None}
    assert pythons(tmp_path, {}) == {LLAMA: None, VLLM: python}
    named = pythons(tmp_path, {"PRFAAS_BENCH_LLAMA_PYTHON": "/x/python"})
    assert named == {LLAMA: Path("/x/python"), VLLM: python}


def test_a_peer_that_is_not_there_is_listed_with_the_reason(tmp_path: Path) -> None:
    files = ModelFiles("m", tmp_path, ModelFingerprint("f"), tmp_path / "m.gguf", tmp_path)
    listed = {c.name: c for c in contestants(files, 2, {LLAMA: Path("/x/python"), VLLM: None}, tmp_path)}
    assert list(listed) == ["prfaas", "prfaas int8", TRANSFORMERS, VLLM, LLAMA]
    assert listed[VLLM].absent == "set PRFAAS_BENCH_VLLM_PYTHON or --peers"
    assert listed[LLAMA].command[0] == "/x/python"
    assert str(tmp_path / "m.gguf") in listed[LLAMA].command
    assert listed["prfaas int8"].environ["PRFAAS_WEIGHT_DTYPE"] == "int8"
    assert listed[LLAMA].environ == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    asleep = contestants(files, 2, {LLAMA: Path("/x/python"), VLLM: None}, tmp_path, spin=False)
    assert {c.environ["OMP_WAIT_POLICY"] for c in asleep} == {"PASSIVE"}
    directory = ModelFiles("m", tmp_path, ModelFingerprint("f"), tmp_path, tmp_path)
    assert {c.absent for c in contestants(directory, 2, {}, tmp_path)[2:]} == {"reads GGUF files only"}
