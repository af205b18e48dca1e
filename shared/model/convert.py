"""Turn a checkpoint or a GGUF file into our weight file: one dtype, fused tensors, written slice by slice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shared.errors import ModelFileError
from shared.kv.layout import Dtype
from shared.model import safetensors_file
from shared.model.config import ModelConfig
from shared.model.safetensors_file import Rows
from shared.model.stored import Shape, StoredTensor, stored_tensors


class WeightSource(Protocol):
    """Tensors by Hugging Face name. `source` names the file or directory in errors."""

    source: str

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape, None when there is no such tensor."""
        ...

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield a tensor as float32, a slice of its first axis at a time."""
        ...


def convert(source: WeightSource, config: ModelConfig, dtype: Dtype, path: Path) -> None:
    """Write the weight file `path`. Peak memory is a few slices, not the model. A progress bar goes to stderr.

    Raises `ModelFileError` naming the tensor when one is missing or does not have the shape that the config implies.
    """
    tensors = stored_tensors(config)
    for tensor in tensors:
        _check(source, tensor)
    safetensors_file.write(path, dtype, [(t.name, t.shape) for t in tensors], _slices(source, tensors, dtype))


def _check(source: WeightSource, tensor: StoredTensor) -> None:
    for name, expected in tensor.parts:
        shape = source.shape(name)
        if shape is None:
            raise ModelFileError(f"{source.source}: tensor {name!r} is missing")
        if shape != expected:
            raise ModelFileError(f"{source.source}: tensor {name!r} has shape {shape}, the config implies {expected}")


def _slices(source: WeightSource, tensors: tuple[StoredTensor, ...], dtype: Dtype) -> Iterator[Rows]:
    from tqdm import tqdm  # deferred: only the first start converts

    total = sum(_elements(tensor.shape) for tensor in tensors)
    with tqdm(total=total, unit="", unit_scale=True, desc=f"converting weights to {dtype}", leave=False) as bar:
        for tensor in tensors:
            for name, _ in tensor.parts:
                for rows in source.rows(name):
                    yield rows
                    bar.update(rows.size)


def _elements(shape: Shape) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
