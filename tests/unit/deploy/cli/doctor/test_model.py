"""Settings, and a model that is missing, not converted, or too large for its memory."""

from pathlib import Path

import pytest

from deploy.cli.doctor import model as checks
from deploy.cli.doctor.finding import Level
from services.cachepool.settings import PoolSettings
from shared.engine.settings import EngineSettings
from shared.model.files.catalog import ensure_weights, resolve, weights_bytes
from tests.support.checkpoints import save_checkpoint


@pytest.fixture
def chosen(tmp_path: Path) -> EngineSettings:
    save_checkpoint("llama", tmp_path / "model")
    return EngineSettings(model=str(tmp_path / "model"), cache_dir=tmp_path / "cache", dtype="float32")


def test_every_bad_variable_is_told_once() -> None:
    finding = checks.settings({"PRFAAS_DTYPE": "int3", "PRFAAS_MAX_BATCH": "0", "PRFAAS_POOL_BYTES": "many"})
    assert finding.level is Level.FAIL
    assert all(finding.why.count(name) == 1 for name in ("PRFAAS_DTYPE", "PRFAAS_MAX_BATCH", "PRFAAS_POOL_BYTES"))
    assert checks.settings({}).level is Level.OK
    assert checks.settings({"PRFAAS_DC": "west", "HOME": "/"}).why == "set: PRFAAS_DC"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    finding = checks.model(EngineSettings(model=str(tmp_path / "none.gguf"), cache_dir=tmp_path))
    assert finding.level is Level.FAIL
    assert str(tmp_path / "none.gguf") in finding.why
    assert "PRFAAS_MODEL" in finding.todo


def test_a_model_is_not_converted_until_it_is(chosen: EngineSettings) -> None:
    finding = checks.model(chosen)
    assert finding.level is Level.WARN
    assert "is not converted to float32 yet" in finding.why
    files = resolve(chosen.model, chosen.cache_dir)
    path = ensure_weights(files, "float32")
    assert checks.model(chosen).level is Level.OK
    path.write_bytes(path.read_bytes()[:-1])
    assert checks.model(chosen).level is Level.WARN, "one that is cut off is converted again"


def test_the_weights_take_what_their_file_does(chosen: EngineSettings) -> None:
    files = resolve(chosen.model, chosen.cache_dir)
    size = ensure_weights(files, "float32").stat().st_size
    assert 0 <= size - weights_bytes(files, "float32") < 20_000  # the header


def test_kv_pages_that_hold_no_whole_context(chosen: EngineSettings, tmp_path: Path) -> None:
    assert checks.context(chosen).level is Level.OK
    small = EngineSettings(model=chosen.model, cache_dir=chosen.cache_dir, dtype="float32", kv_bytes=1000)
    finding = checks.context(small)
    assert finding.level is Level.FAIL
    needed = 512 * 3 * 2 * 2 * 16 * 4  # tokens, layers, K and V, heads, elements, bytes
    assert f"PRFAAS_KV_BYTES to {needed} at least" in finding.todo
    missing = EngineSettings(model=str(tmp_path / "none"), cache_dir=tmp_path)
    assert checks.context(missing).level is Level.WARN


def test_a_gpu_that_is_not_there(chosen: EngineSettings) -> None:
    assert checks.device(chosen).level is Level.OK
    finding = checks.device(EngineSettings(device="cuda:63"))
    assert finding.level is Level.FAIL
    assert finding.why.startswith("cuda:63: ")
    assert "PRFAAS_DEVICE=cpu" in finding.todo


def test_memory_is_pools_and_pages_and_one_file_of_weights(chosen: EngineSettings) -> None:
    pool = PoolSettings(pool_bytes=1000)
    weights = weights_bytes(resolve(chosen.model, chosen.cache_dir), "float32")
    assert checks.memory_bytes(chosen, pool, 3, 2) == 2000 + 3 * chosen.kv_bytes + weights
    on_gpu = EngineSettings(model=chosen.model, device="cuda")
    assert checks.memory_bytes(on_gpu, pool, 3, 2) == 2000
