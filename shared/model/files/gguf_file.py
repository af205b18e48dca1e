"""Read a GGUF file's header and dequantise its tensors, in slices.

The `gguf` package's own reader is slow over large vocabularies: it makes several arrays for each entry. The block
formats are dequantised by the package. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.errors import ModelFileError
from shared.model.files.safetensors_file import Rows, row_slices
from shared.model.files.stored import Shape

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 1 << 32  # a count above this is damage, not a model


class GgufTensor(NamedTuple):
    """Where one tensor lives and how it is stored."""

    shape: Shape  # slowest-moving dimension first, as Hugging Face has it
    kind: int  # ggml's type number
    start: int  # bytes from the start of the file
    row_bytes: int


class GgufFile:
    """A parsed header: `metadata` by key, `tensors` by name. The tensors' data is read on demand.

    Raises `ModelFileError` when the file is missing, cut off or not GGUF version 2 or 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                size = len(data)
                header = _Header(data)
                self.metadata: dict[str, Any] = header.metadata()
                table = header.tensor_table()
                alignment = int(self.metadata.get("general.alignment", 32))
                base = -(-header.position // alignment) * alignment
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror}") from error
        except (struct.error, UnicodeDecodeError, ValueError, KeyError, IndexError) as error:
            raise ModelFileError(f"{path}: not a GGUF file, or damaged ({error})") from error
        self.tensors = {name: self._tensor(name, entry, base, size) for name, entry in table.items()}

    def _tensor(self, name: str, entry: tuple[Shape, int, int], base: int, size: int) -> GgufTensor:
        shape, kind, offset = entry
        blocks = _block_sizes().get(kind)
        if blocks is None or not shape or shape[-1] % blocks[0]:
            raise ModelFileError(f"{self.path}: tensor {name!r} has ggml type {kind} and shape {shape}: not supported")
        tensor = GgufTensor(shape, kind, base + offset, shape[-1] // blocks[0] * blocks[1])
        end = tensor.start + tensor.row_bytes * math.prod(shape[:-1])
        if end > size:
            raise ModelFileError(f"{self.path}: cut off: tensor {name!r} ends at byte {end}, the file at {size}")
        return tensor

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield one tensor as float32, a slice of its first axis at a time."""
        from gguf.constants import GGMLQuantizationType  # deferred: most starts find their weights converted
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        lines = tensor.shape[:-1] or (1,)
        mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=tensor.start, shape=(*lines, tensor.row_bytes))
        kind = GGMLQuantizationType(tensor.kind)
        if len(tensor.shape) == 1:
            yield dequantize(mapped, kind).astype(np.float32, copy=False).reshape(tensor.shape)
            return
        for start, stop in row_slices(tensor.shape):
            yield dequantize(mapped[start:stop], kind).astype(np.float32, copy=False)


class _Header:
    """A cursor over the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0
        if data[:4] != b"GGUF":
            raise ValueError("it does not start with the letters GGUF")
        self.position = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported")
        self._num_tensors = self._count()
        self._num_fields = self._count()

    def metadata(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for _ in range(self._num_fields):
            name = self._string()
            fields[name] = self._value(self._scalar("<I"))
        return fields

    def tensor_table(self) -> dict[str, tuple[Shape, int, int]]:
        table: dict[str, tuple[Shape, int, int]] = {}
        for _ in range(self._num_tensors):
            name = self._string()
            dims = [self._count() for _ in range(self._scalar("<I"))]
            table[name] = (tuple(reversed(dims)), self._scalar("<I"), self._scalar("<Q"))
        return table

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self.position)
        self.position += struct.calcsize(code)
        return value

    def _count(self) -> int:
        count = int(self._scalar("<Q"))
        if count > _MAX_COUNT:
            raise ValueError(f"impossible count {count}")
        return count

    def _string(self) -> str:
        length = self._count()
        raw = self._data[self.position : self.position + length]
        if len(raw) != length:
            raise ValueError("it ends inside a string")
        self.position += length
        return raw.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item = self._scalar("<I")
        count = self._count()
        if item in (_STRING, _ARRAY):
            read: Callable[[], Any] = self._string if item == _STRING else lambda: self._value(_ARRAY)
            return [read() for _ in range(count)]
        code = _SCALARS[item]
        values = list(struct.unpack_from(f"<{count}{code[1]}", self._data, self.position))
        self.position += count * struct.calcsize(code)
        return values


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Return (elements, bytes) of a block by ggml type, for the types that the `gguf` package knows."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
