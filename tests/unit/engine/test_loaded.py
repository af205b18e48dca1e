"""PRFAAS_KV_BYTES against what one context needs."""

from pathlib import Path

import pytest

from shared.engine.loaded import load_model
from shared.engine.settings import EngineSettings
from shared.errors import SettingsError
from tests.support import checkpoints
from tests.support.kernels import cache_with_kernels

CONTEXT = 512  # of the tiny checkpoints; Gemma's has one full layer and two of a window of 12 tokens
LAYER_BYTES = 2 * 1 * 16 * 4  # of one token: K and V of one head of 16 in float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    cache_with_kernels(folder)
    checkpoints.save_checkpoint("gemma3", folder / "model")
    return folder / "model"


def settings(checkpoint: Path, kv_bytes: int) -> EngineSettings:
    return EngineSettings(
        model=str(checkpoint),
        dtype="float32",
        kv_bytes=kv_bytes,
        block_tokens=16,
        chunk_tokens=32,
        cache_dir=checkpoint.parent / "cache",
    )


def test_window_layers_are_charged_for_the_window_only(checkpoint: Path) -> None:
    window_tokens = 16 * 6 + 16 * 2  # 12 and twice a chunk, at any alignment, and a cached prefix's window
    needed = (CONTEXT + 2 * window_tokens) * LAYER_BYTES
    model = load_model(settings(checkpoint, needed))
    assert model.kv.fits(CONTEXT, 64)
    assert model.kv.capacity_tokens(64) == CONTEXT
    with pytest.raises(SettingsError, match=f"set it to at least {needed}"):
        load_model(settings(checkpoint, needed - 1))
