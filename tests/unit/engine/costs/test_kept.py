"""A fit on disk: it comes back with the worker, and whatever is wrong with the file costs the fit only."""

import asyncio
from pathlib import Path

import pytest

from services.decode.settings import DecodeSettings
from services.prefill.settings import PrefillSettings
from shared.engine.costs import kept
from shared.engine.costs.kept import KeptFit, kept_fit
from shared.engine.costs.prior import prior_of
from shared.engine.settings import EngineSettings
from shared.ids import ModelFingerprint
from shared.measuring.fitting import OnlineFit
from tests.support.tiny import tiny_model
from tests.support.waiting import until

PRIOR = (1e-3, 1e-5, 1e-8)
ONE, OTHER = ModelFingerprint("1" * 64), ModelFingerprint("2" * 64)


def learn(fit: OnlineFit, num_steps: int = 40) -> None:
    for step in range(num_steps):
        tokens = 64 * (1 + step % 8)
        fit.measured((1, tokens, tokens * 100), 5e-3 + tokens * 3e-5)


async def test_a_fit_comes_back_and_counts_as_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEEP_EVERY_S", 0.01)
    path = tmp_path / "profiles" / "prefill.json"
    fit = KeptFit(path).load(PRIOR)
    assert fit.coefficients == PRIOR
    learn(fit)
    task = asyncio.create_task(KeptFit(path).keep(fit))
    await until(path.exists)
    task.cancel()
    await asyncio.wait({task})
    again = KeptFit(path).load(PRIOR)
    assert again.coefficients == pytest.approx(fit.coefficients)
    assert again.num_observations == 1, "known, but soon known better"


async def test_what_was_learnt_last_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "prefill.json"
    file = KeptFit(path)
    fit = file.load(PRIOR)
    task = asyncio.create_task(file.keep(fit))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert not path.exists(), "a prior is not worth a file"
    learn(fit)
    task = asyncio.create_task(file.keep(fit))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert KeptFit(path).load(PRIOR).coefficients == pytest.approx(fit.coefficients)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", OnlineFit((1.0, 1.0)).to_json().encode()])
def test_a_file_that_serves_nobody_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prefill.json"
    path.write_bytes(content)
    assert KeptFit(path).load(PRIOR).coefficients == PRIOR


async def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEEP_EVERY_S", 0.001)
    (tmp_path / "profiles").write_text("a file where the folder should be")
    file = KeptFit(tmp_path / "profiles" / "prefill.json")
    fit = file.load(PRIOR)
    learn(fit)
    task = asyncio.create_task(file.keep(fit))
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


def test_models_roles_and_machines_have_files_of_their_own(tmp_path: Path) -> None:
    def path(settings: EngineSettings, model: ModelFingerprint = ONE) -> Path:
        return kept_fit(settings, model)._path

    paths = {
        path(PrefillSettings(cache_dir=tmp_path, threads=2)),
        path(PrefillSettings(cache_dir=tmp_path, threads=2), OTHER),
        path(PrefillSettings(cache_dir=tmp_path, threads=1)),
        path(PrefillSettings(cache_dir=tmp_path, threads=2, dtype="float32")),
        path(PrefillSettings(cache_dir=tmp_path, threads=2, weight_dtype="int8")),
        path(DecodeSettings(cache_dir=tmp_path, threads=2)),
    }
    assert len(paths) == 6
    assert path(PrefillSettings(cache_dir=tmp_path, threads=2)) in paths


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_prior_is_positive_quicker_with_more_threads_and_quickest_on_a_gpu(name: str) -> None:
    config = tiny_model(name).config
    assert len(prior_of(config, PrefillSettings(threads=1))) == 3
    one, eight, gpu = (
        prior_of(config, settings)
        for settings in (DecodeSettings(threads=1), DecodeSettings(threads=8), DecodeSettings(device="cuda"))
    )
    assert len(one) == 5
    assert all(value > 0 for value in (*one, *eight, *gpu))
    assert eight[1] == pytest.approx(one[1] / 8)
    assert all(quick <= slow for quick, slow in zip(gpu, eight, strict=True))
