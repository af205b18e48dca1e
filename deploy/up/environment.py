"""The environment that `make up` gives to its processes."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages lie: a checkout, or the folder of an installation."""
BASE = ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()
_PACKAGED = Path(__file__).with_name("Procfile")
"""Only in an installation: the checkout's, beside this module."""
PROCFILE = _PACKAGED if _PACKAGED.is_file() else BASE / "Procfile"
RUN = BASE / ".run"
"""What a suite leaves behind: its logs, the objects of its pools."""
DEFAULTS = {
    # Well within the time after which a process is killed.
    "PRFAAS_DRAIN_S": "3",
    # Three engines share these cores. A thread of OpenMP that spins while it waits for one that another engine has
    # pushed aside makes a token take a second; one that sleeps costs microseconds.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Each pool has a folder of its own in it. What is cached outlives a restart; `make clean` removes it.
    "PRFAAS_POOL_OBJECT_URL": (RUN / "pool").as_uri(),
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the suite's environment: this interpreter and tree first, defaults where the caller set nothing."""
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}
    paths = {name: os.pathsep.join(filter(None, [path, environ.get(name)])) for name, path in first.items()}
    return {**DEFAULTS, **environ, **paths}
