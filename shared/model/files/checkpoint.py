"""A Hugging Face checkpoint directory: its safetensors files and the tensors in them."""

import json
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ModelFileError
from shared.model.files.safetensors_file import Entry, Rows, read_header, read_rows
from shared.model.files.stored import Shape

_TEXT_PREFIXES = ("language_model.", "model.language_model.")  # the decoder inside a multimodal checkpoint


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint. Raises `ModelFileError` when there are none or one is missing."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelFileError(f"{directory}: holds neither model.safetensors nor model.safetensors.index.json")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFileError(f"{index}: cannot be read as a safetensors index ({error!r})") from error
    files = [directory / str(name) for name in names]
    for file in files:
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file, although {index.name} names it")
    return files


class CheckpointWeights:
    """The tensors of a checkpoint by name, read as float32 slices."""

    def __init__(self, directory: Path) -> None:
        self.source = str(directory)
        self._entries: dict[str, tuple[Path, str, Entry]] = {}
        for path in weight_files(directory):
            for name, entry in read_header(path).items():
                self._entries[_plain_name(name)] = (path, name, entry)

    def shape(self, name: str) -> Shape | None:
        found = self._entries.get(name)
        return None if found is None else found[2].shape

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield one tensor as float32 slices of its first axis."""
        path, stored_name, entry = self._entries[name]
        return read_rows(path, stored_name, entry)


def _plain_name(name: str) -> str:
    for prefix in _TEXT_PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"
    return name
