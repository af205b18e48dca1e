"""A worker's fit on disk, so that a restart does not begin blind."""

import asyncio
import hashlib
import platform
from pathlib import Path

import torch

from shared.engine.settings import EngineSettings
from shared.ids import ModelFingerprint
from shared.log import get_logger
from shared.measuring.fitting import OnlineFit
from shared.model.files.fingerprint import write_atomically

log = get_logger()

KEEP_EVERY_S = 30.0

KEPT_WEIGHT = 0.1
"""Of a step, that what was learnt in an earlier life weighs: others may use the machine now, or its limits be others.

A replay of short prompts after an earlier life with long ones, on cores three times as quick: with the weight of 5
steps a step of four prompts was held to take a quarter too little still after a hundred steps; with this one the error
is a tenth after twenty. Where nothing has changed, both are as good from ten steps on.
"""


class KeptFit:
    """A file that holds a fit. Whatever is wrong with it costs what was learnt, and is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = ""

    def load(self, prior: tuple[float, ...]) -> OnlineFit:
        """Return the fit of an earlier life; one that knows the prior alone where there is none that serves."""
        try:
            fit = OnlineFit.from_json(self._path.read_bytes()).aged(KEPT_WEIGHT)
            if fit.num_features != len(prior):
                raise ValueError(f"{fit.num_features} features, not {len(prior)}")
        except FileNotFoundError:
            fit = OnlineFit(prior)
        except (OSError, ValueError) as error:
            log.warning("profile_not_loaded", path=str(self._path), error=str(error))
            fit = OnlineFit(prior)
        self._kept = fit.to_json()
        return fit

    async def keep(self, fit: OnlineFit) -> None:
        """Write the fit whenever it has changed, every `KEEP_EVERY_S` at most, and at the end; until cancelled."""
        try:
            while True:
                await asyncio.sleep(KEEP_EVERY_S)
                await asyncio.to_thread(self._write, fit.to_json())
        finally:
            self._write(fit.to_json())

    def _write(self, state: str) -> None:
        if state == self._kept:
            return
        try:
            write_atomically(self._path, state.encode())
        except OSError as error:
            log.warning("profile_not_kept", path=str(self._path), error=str(error))
        else:
            self._kept = state


def kept_fit(settings: EngineSettings, fingerprint: ModelFingerprint) -> KeptFit:
    """Return where the fit lies of a service, a model, and a machine as far as steps depend on it."""
    device = torch.device(settings.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    parts = (fingerprint, device.type, machine, settings.dtype, settings.weight_dtype, str(settings.num_threads))
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(settings.profile_dir or settings.cache_dir / "profiles").expanduser()
    return KeptFit(folder / f"{settings.service}-{name}.json")
