"""Turn a checkpoint or a GGUF file into our weight file: one dtype, fused tensors, written slice by slice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import ModelFileError
from shared.kv.layout import Dtype
from shared.model.files import safetensors_file
from shared.model.files.config import ModelConfig
from shared.model.files.safetensors_file import Rows, Tensor, round_to_bfloat16
from shared.model.files.stored import SCALE, Shape, StoredTensor, WeightDtype, int8_tensors, stored_tensors

_TAGS: dict[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class WeightSource(Protocol):
    """Tensors by Hugging Face name. `source` names the file or directory in errors."""

    source: str

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape, None when there is no such tensor."""
        ...

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield a tensor as float32, a slice of its first axis at a time."""
        ...


def file_tensors(config: ModelConfig, dtype: WeightDtype) -> list[Tensor]:
    """Return what a weight file in `dtype` holds, in order."""
    if dtype == "int8":
        return [
            part
            for t in int8_tensors(config)
            for part in (Tensor(t.name, "I8", t.shape), Tensor(t.name + SCALE, "F32", t.shape[:1]))
        ]
    return [Tensor(t.name, _TAGS[dtype], t.shape) for t in stored_tensors(config)]


def convert(source: WeightSource, config: ModelConfig, dtype: WeightDtype, path: Path) -> None:
    """Write the weight file `path`. Peak memory is a few slices, not the model. A progress bar goes to stderr.

    Raises `ModelFileError` naming the tensor when one is missing, does not have the shape that the config implies or
    holds values that are not finite.
    """
    tensors = int8_tensors(config) if dtype == "int8" else stored_tensors(config)
    for tensor in tensors:
        _check(source, tensor)
    safetensors_file.write(path, file_tensors(config, dtype), _chunks(source, tensors, dtype))


def _check(source: WeightSource, tensor: StoredTensor) -> None:
    for name, expected in tensor.parts:
        shape = source.shape(name)
        if shape is None:
            raise ModelFileError(f"{source.source}: tensor {name!r} is missing")
        if shape != expected:
            raise ModelFileError(f"{source.source}: tensor {name!r} has shape {shape}, the config implies {expected}")


def _chunks(source: WeightSource, tensors: tuple[StoredTensor, ...], dtype: WeightDtype) -> Iterator[NDArray[Any]]:
    from tqdm import tqdm  # deferred: only the first start converts

    total = sum(_elements(tensor.shape) for tensor in tensors)
    with tqdm(total=total, unit="", unit_scale=True, desc=f"converting weights to {dtype}", leave=False) as bar:
        for tensor in tensors:
            scales = []
            for name, _ in tensor.parts:
                for rows in source.rows(name):
                    if not np.isfinite(rows).all():
                        raise ModelFileError(f"{source.source}: tensor {name!r} holds values that are not finite")
                    if dtype == "int8":
                        integers, scale = quantise_rows(rows)
                        scales.append(scale)
                        yield integers
                    else:
                        yield _encode(rows, dtype)
                    bar.update(rows.size)
            yield from scales


def _encode(rows: Rows, dtype: Dtype) -> NDArray[Any]:
    if dtype == "bfloat16":
        return round_to_bfloat16(rows)
    return rows.astype("<f4" if dtype == "float32" else "<f2")


def quantise_rows(rows: Rows) -> tuple[NDArray[np.int8], Rows]:
    """Return each row as integers of -127 to 127 and the float32 to multiply them with, rounded to nearest."""
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    divisor = np.where(scale > 0, scale, np.float32(1))
    return np.rint(rows / divisor[:, None]).astype(np.int8), scale.astype("<f4")


def _elements(shape: Shape) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
