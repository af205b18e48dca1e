"""Map a weight file into memory and check it against the config. Processes on one machine share its pages."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ModelFileError
from shared.kv.layout import Dtype
from shared.model.files.config import ModelConfig
from shared.model.files.stored import SCALE, Shape, int8_tensors, stored_tensors


def load_weights(
    config: ModelConfig, path: Path, dtype: Dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name (see `stored`), on CPU as views of the mapped file: never write them.

    Raises `ModelFileError` naming the tensor that is missing, has another shape or another dtype.
    """
    weights = _load(path, {t.name: t.shape for t in stored_tensors(config)}, device)
    wanted = getattr(torch, dtype)
    for name, tensor in weights.items():
        _check_dtype(path, name, tensor, wanted)
    return weights


def load_int8(config: ModelConfig, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the int8 matrices of a file by name, each with the float32 scales of its rows; mapped, as above."""
    shapes = {t.name: t.shape for t in int8_tensors(config)}
    tensors = _load(path, shapes | {name + SCALE: shape[:1] for name, shape in shapes.items()}, "cpu")
    for name in shapes:
        _check_dtype(path, name, tensors[name], torch.int8)
        _check_dtype(path, name + SCALE, tensors[name + SCALE], torch.float32)
    return {name: (tensors[name], tensors[name + SCALE]) for name in shapes}


def _load(path: Path, expected: dict[str, Shape], device: torch.device | str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            found = set(file.keys())
            if missing := expected.keys() - found:
                raise ModelFileError(f"{path}: tensor {min(missing)!r} is missing")
            if surplus := found - expected.keys():
                raise ModelFileError(f"{path}: tensor {min(surplus)!r} does not belong to this model")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: cannot be read as a weight file: {error}") from error
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ModelFileError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, not {expected[name]}")
    return tensors


def _check_dtype(path: Path, name: str, tensor: Tensor, wanted: torch.dtype) -> None:
    if tensor.dtype != wanted:
        raise ModelFileError(f"{path}: tensor {name!r} is {tensor.dtype}, not {wanted}")
