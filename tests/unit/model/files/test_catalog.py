"""Preparing model files: idempotent, safe in parallel, truthful about damage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.errors import ModelFileError
from shared.model.files import catalog
from shared.model.files.catalog import ensure_weights, resolve
from shared.model.files.safetensors_file import read_header
from shared.model.files.stored import stored_tensors
from shared.model.layers.weights import load_weights
from tests.support.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    save_checkpoint("qwen2", path)
    return path


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_default_model_needs_no_setup(tmp_path: Path) -> None:
    files = resolve(catalog.DEFAULT_MODEL, tmp_path)
    assert files.name == "smollm2-135m-instruct"
    assert len(files.fingerprint) == 64
    assert {p.name for p in files.path.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert files.config().max_context == 8192
    before = {p: p.stat().st_mtime_ns for p in files.path.iterdir()}
    assert resolve(catalog.DEFAULT_MODEL, tmp_path) == files
    assert {p: p.stat().st_mtime_ns for p in files.path.iterdir()} == before


def test_weights_are_converted_once(checkpoint: Path, tmp_path: Path) -> None:
    files = resolve(str(checkpoint), tmp_path / "cache")
    path = ensure_weights(files, "bfloat16")
    stamp = path.stat().st_mtime_ns
    assert ensure_weights(files, "bfloat16") == path
    assert path.stat().st_mtime_ns == stamp
    assert ensure_weights(files, "float32") != path
    assert {entry.tag for entry in read_header(path).values()} == {"BF16"}
    assert list(read_header(path)) == [tensor.name for tensor in stored_tensors(files.config())]


def test_bfloat16_is_rounded_as_torch_rounds(checkpoint: Path, tmp_path: Path) -> None:
    files = resolve(str(checkpoint), tmp_path / "cache")
    exact = load_weights(files.config(), ensure_weights(files, "float32"), "float32")
    rounded = load_weights(files.config(), ensure_weights(files, "bfloat16"), "bfloat16")
    for name, tensor in exact.items():
        assert torch.equal(tensor.to(torch.bfloat16), rounded[name])


def test_a_damaged_weight_file_is_converted_again(checkpoint: Path, tmp_path: Path) -> None:
    files = resolve(str(checkpoint), tmp_path / "cache")
    path = ensure_weights(files, "float32")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert ensure_weights(files, "float32").read_bytes() == whole
    assert not [p.name for p in path.parent.iterdir() if p.name.startswith(".weights") and p.suffix != ".lock"]


def test_the_fingerprint_follows_content_not_place(checkpoint: Path, tmp_path: Path) -> None:
    first = resolve(str(checkpoint), tmp_path / "cache")
    elsewhere = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere" / "model"))
    assert resolve(str(elsewhere), tmp_path / "cache").fingerprint == first.fingerprint
    weights = elsewhere / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert resolve(str(elsewhere), tmp_path / "cache").fingerprint != first.fingerprint


def test_many_processes_at_once(checkpoint: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PRFAAS_MODEL": str(checkpoint),
        "PRFAAS_CACHE_DIR": str(tmp_path / "cache"),
        "PRFAAS_DTYPE": "float32",
    }
    command = [sys.executable, "-m", "shared.model.files.catalog", "--weights"]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(4)
    ]
    printed = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    (line,) = printed
    assert line == f"model: {ensure_weights(resolve(str(checkpoint), tmp_path / 'cache'), 'float32')}"


def test_the_command_reports_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"PRFAAS_MODEL": str(tmp_path / "nothing"), "PRFAAS_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "shared.model.files.catalog"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "neither a built-in model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(ModelFileError, match=missing):
        resolve(str(checkpoint), tmp_path / "cache")


def test_a_cut_off_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    files = resolve(str(checkpoint), tmp_path / "cache")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: should be \d+ bytes long"):
        ensure_weights(files, "float32")


def test_a_config_that_does_not_fit_names_the_tensor(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    files = resolve(str(checkpoint), tmp_path / "cache")
    with pytest.raises(ModelFileError, match=r"'model\.layers\.0\.mlp\.gate_proj\.weight' has shape \(48, 32\)"):
        ensure_weights(files, "float32")


def test_a_missing_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4})
    )
    files = resolve(str(checkpoint), tmp_path / "cache")
    with pytest.raises(ModelFileError, match=r"tensor 'model\.layers\.3\.\S+' is missing"):
        ensure_weights(files, "float32")


def test_loading_checks_dtype_and_names(checkpoint: Path, tmp_path: Path) -> None:
    files = resolve(str(checkpoint), tmp_path / "cache")
    path = ensure_weights(files, "float32")
    with pytest.raises(ModelFileError, match=r"is torch\.float32, not torch\.bfloat16"):
        load_weights(files.config(), path, "bfloat16")
    with pytest.raises(ModelFileError, match="is missing"):
        load_weights(files.config(), checkpoint / "model.safetensors", "float32")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_weights(files.config(), checkpoint / "config.json", "float32")


def test_weights_that_are_not_numbers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-4:] = b"\xff\xff\xff\x7f"
    weights.write_bytes(raw)
    with pytest.raises(ModelFileError, match="not finite"):
        ensure_weights(resolve(str(checkpoint), tmp_path / "cache"), "float32")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="gemma3-270m"):
        resolve("no-such-model", tmp_path)


def test_no_torch_before_the_weights_are_mapped() -> None:
    code = (
        "import sys; import shared.model.files.catalog, shared.model.text.tokenizer, shared.sampling.params;"
        "sys.exit(1 if {'torch', 'safetensors', 'transformers'} & sys.modules.keys() else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
