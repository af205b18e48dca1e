"""How tokens are chosen where a request does not say: what a model's makers recommend in `generation_config.json`."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shared.errors import ModelFileError, SettingsError

FILE = "generation_config.json"
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class GenerationDefaults:
    """The same fields that vLLM takes from such a file. A file's `do_sample` says nothing here, as there."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None  # of a chat's answer; None: what the context has room for

    @classmethod
    def of(cls, setting: str, model_directory: Path) -> Self:
        """Read those of the model (`auto`, where it has some), none, or a file's.

        `setting` is that of PRFAAS_GENERATION_CONFIG; a path names the file, or a directory that has one. Raises
        `SettingsError` for a path without a file, `ModelFileError` for a file that is damaged.
        """
        if setting == NONE:
            return cls()
        named = model_directory if setting == AUTO else Path(setting).expanduser()
        path = named / FILE if named.is_dir() else named
        if path.is_file():
            return cls._read(path)
        if setting == AUTO:
            return cls()
        raise SettingsError(f"PRFAAS_GENERATION_CONFIG: {path}: no such file; it may also be {AUTO} or {NONE}")

    @classmethod
    def _read(cls, path: Path) -> Self:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise ModelFileError(f"{path}: expected a JSON object")
        found: dict[str, Any] = {}
        for name, (field, is_right) in _FIELDS.items():
            value = content.get(name)
            if value is None:
                continue
            if not (isinstance(value, int | float) and not isinstance(value, bool) and is_right(value)):
                raise ModelFileError(f"{path}: {name} is {value!r}, which cannot be")
            found[field] = value
        if "top_k" in found:
            found["top_k"] = max(0, found["top_k"])  # -1 is all tokens too
        return cls(**found)


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("temperature", lambda value: math.isfinite(value) and 0 <= value <= 100),
    "top_p": ("top_p", lambda value: 0 < value <= 1),
    "top_k": ("top_k", _is_count(-1)),
    "min_p": ("min_p", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("repetition_penalty", lambda value: 0.01 <= value <= 100),
    "max_new_tokens": ("max_tokens", _is_count(1)),
}
"""Of each field of the file: ours, and whether a number can be its value."""

NO_DEFAULTS = GenerationDefaults()
