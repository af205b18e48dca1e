"""Map a weight file into memory and check it against the config. Processes on one machine share its pages."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ModelFileError
from shared.kv.layout import Dtype
from shared.model.config import ModelConfig
from shared.model.stored import stored_tensors


def load_weights(
    config: ModelConfig, path: Path, dtype: Dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name (see `stored`), on CPU as views of the mapped file: never write them.

    Raises `ModelFileError` naming the tensor that is missing, has another shape or another dtype.
    """
    expected = {tensor.name: tensor.shape for tensor in stored_tensors(config)}
    wanted = getattr(torch, dtype)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            found = set(file.keys())
            if missing := expected.keys() - found:
                raise ModelFileError(f"{path}: tensor {min(missing)!r} is missing")
            if surplus := found - expected.keys():
                raise ModelFileError(f"{path}: tensor {min(surplus)!r} does not belong to this model")
            weights = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: cannot be read as a weight file: {error}") from error
    for name, tensor in weights.items():
        if tuple(tensor.shape) != expected[name]:
            raise ModelFileError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, not {expected[name]}")
        if tensor.dtype != wanted:
            raise ModelFileError(f"{path}: tensor {name!r} is {tensor.dtype}, not {wanted}")
    return weights
