"""Read and write safetensors files with numpy alone, in slices.

The `safetensors` package cannot read bfloat16 into numpy nor write tensor by tensor; with torch it could, but the
gateway prepares model files too and has no torch. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import ModelFileError
from shared.model.files.stored import Shape

Rows = NDArray[np.float32]
_SLICE_ELEMENTS = 1 << 23  # 32 MiB of float32 at a time
_MAX_HEADER_BYTES = 100 << 20
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
_READABLE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Entry(NamedTuple):
    """One tensor in a file's header."""

    tag: str  # safetensors' dtype name
    shape: Shape
    start: int  # from the start of the file, in bytes
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file. Raises `ModelFileError` when the file is missing, truncated or not safetensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelFileError(f"{path}: not a safetensors file, or cut off in its header")
            raw: dict[str, Any] = json.loads(file.read(length))
        raw.pop("__metadata__", None)
        base = 8 + length
        entries = {
            name: Entry(
                item["dtype"], tuple(item["shape"]), base + item["data_offsets"][0], base + item["data_offsets"][1]
            )
            for name, item in raw.items()
        }
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelFileError(f"{path}: damaged safetensors header ({error})") from error
    end = max((entry.end for entry in entries.values()), default=base)
    if end != size:
        raise ModelFileError(f"{path}: should be {end} bytes long but is {size}: cut off or damaged")
    return entries


def read_rows(path: Path, name: str, entry: Entry) -> Iterator[Rows]:
    """Yield one tensor as float32, a slice of its first axis at a time."""
    if entry.tag not in _READABLE:
        raise ModelFileError(f"{path}: tensor {name!r} is stored as {entry.tag}, which is not supported")
    dtype = _READABLE[entry.tag]
    if math.prod(entry.shape) * dtype.itemsize != entry.end - entry.start:
        raise ModelFileError(f"{path}: tensor {name!r} does not fill its bytes: damaged header")
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=entry.start, shape=entry.shape)
    for start, stop in row_slices(entry.shape):
        part = np.asarray(mapped[start:stop])
        if entry.tag == "BF16":
            yield (part.astype(np.uint32) << 16).view(np.float32)
        else:
            yield part.astype(np.float32)


def row_slices(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut the first axis into slices of bounded size."""
    step = max(1, _SLICE_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class Tensor(NamedTuple):
    """A tensor that is to be written."""

    name: str
    tag: str  # safetensors' dtype name
    shape: Shape

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.tag]


def write(path: Path, tensors: Sequence[Tensor], chunks: Iterable[NDArray[Any]]) -> None:
    """Write a file of `tensors`, whose numbers arrive in order, already in their dtypes, through `chunks`."""
    header: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.tag, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)  # so that the first tensor starts aligned when the file is mapped
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        written = sum(file.write(np.ascontiguousarray(chunk).data.cast("B")) for chunk in chunks)
    if written != offset:
        raise ModelFileError(f"{path}: wrote {written} bytes of weights instead of {offset}")


def round_to_bfloat16(values: Rows) -> NDArray[np.uint16]:
    """Round finite float32 values to bfloat16, ties to even; numpy has no such type, so the bits are returned."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
