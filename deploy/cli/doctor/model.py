"""Checks of settings and of the model: is it there, is it converted, what do its processes take."""

import os
from collections.abc import Mapping
from contextlib import suppress

from deploy.cli.doctor.finding import Finding, failed, fine, warned
from deploy.cli.doctor.machine import gib
from services.cachepool.settings import PoolSettings
from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from shared.config import load
from shared.engine.settings import EngineSettings
from shared.errors import ModelFileError, SettingsError
from shared.model.files.catalog import has_weights, resolve, weights_bytes
from shared.model.pages.groups import PageGroups

ALL_SETTINGS = (GatewaySettings, PoolSettings, PrefillSettings, DecodeSettings)


def settings(environ: Mapping[str, str] = os.environ) -> Finding:
    """Check the variables PRFAAS_* of this environment as the services will."""
    problems: dict[str, str] = {}  # by variable: services tell the same of those that they share
    for cls in ALL_SETTINGS:
        try:
            load(cls, environ)
        except SettingsError as error:
            problems |= {line.partition(":")[0]: line for line in str(error).splitlines()}
    if problems:
        return failed("settings", "; ".join(problems.values()), "correct or unset them; docs/settings.md has all")
    set_ones = sorted(name for name in environ if name.startswith("PRFAAS_") and environ[name].strip())
    return fine("settings", f"set: {', '.join(set_ones)}" if set_ones else "all have their defaults")


def model(chosen: EngineSettings) -> Finding:
    """Check that the model is there and converted. All but its weights is prepared, if it was not."""
    try:
        files = resolve(chosen.model, chosen.cache_dir.expanduser())
        is_converted, num_bytes = has_weights(files, chosen.dtype), weights_bytes(files, chosen.dtype)
    except (ModelFileError, OSError) as error:
        return failed("model", str(error), "correct PRFAAS_MODEL; `make setup` installs the built-in models")
    if not is_converted:
        return warned(
            "model",
            f"{files.name} is not converted to {chosen.dtype} yet: {gib(num_bytes)} will be written",
            "nothing: `prfaas up` does it once; or now: python -m shared.model.files.catalog --weights",
        )
    return fine("model", f"{files.name} is converted, in {files.weights_dir}")


def context(chosen: EngineSettings) -> Finding:
    """Check that an engine's KV pages hold one whole context of the model: an engine does not start without."""
    try:
        config = resolve(chosen.model, chosen.cache_dir.expanduser()).config()
    except (ModelFileError, OSError):
        return warned("context", "not known without the model", "see `model`")
    layout = config.kv_layout(chosen.block_tokens, chosen.dtype)
    groups = PageGroups.of(layout)
    num_tokens = min(chosen.max_model_len or config.max_context, config.max_context)
    num_pages = groups.pages_needed(num_tokens, chosen.stride_tokens, chosen.block_tokens)
    needed_bytes = num_pages * groups.page_bytes(layout, chosen.block_tokens)
    told = f"a context of {num_tokens} tokens takes {gib(needed_bytes)} of the {gib(chosen.kv_bytes)} for KV pages"
    if needed_bytes > chosen.kv_bytes:
        todo = f"set PRFAAS_KV_BYTES to {needed_bytes} at least, or PRFAAS_MAX_MODEL_LEN lower"
        return failed("context", told, todo)
    return fine("context", told)


def device(chosen: EngineSettings) -> Finding:
    """Check that there is the device that engines shall compute on."""
    if chosen.device == "cpu":
        return fine("device", "cpu")
    import torch  # takes seconds: only for those who want another device

    try:
        torch.empty(1, device=chosen.device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0]
        return failed(
            "device",
            f"{chosen.device}: {reason}",
            "set PRFAAS_DEVICE=cpu, or install a torch for this GPU and its driver",
        )
    return fine("device", chosen.device)


def memory_bytes(chosen: EngineSettings, pool: PoolSettings, num_engines: int, num_pools: int) -> int:
    """Return what pools, KV pages and weights may take of this machine's memory. Engines share the file of weights."""
    needed_bytes = num_pools * pool.pool_bytes
    if num_engines and chosen.device == "cpu":
        needed_bytes += num_engines * chosen.kv_bytes
        with suppress(ModelFileError, OSError):  # `model` tells of that
            needed_bytes += weights_bytes(resolve(chosen.model, chosen.cache_dir.expanduser()), chosen.dtype)
    return needed_bytes
