"""Typed access to a `config.json` whose every complaint names file and field."""

from collections.abc import Mapping
from typing import Any

from shared.errors import ModelFileError


class ConfigFields:
    """The fields of one configuration; `source` names the file in messages."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def fail(self, field: str, problem: str) -> ModelFileError:
        """Return the error that says what is wrong with a field."""
        return ModelFileError(f"{self.source}: field {field!r} {problem}")

    def integer(self, field: str, default: int | None = None) -> int:
        """Return a positive integer. Raises `ModelFileError`, also when the field is missing without a default."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(field, f"must be a positive integer, not {value!r}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """Return a positive number. Raises `ModelFileError`, also when the field is missing without a default."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.fail(field, f"must be a positive number, not {value!r}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        """Return true or false. Raises `ModelFileError`."""
        value = self._get(field, default)
        if not isinstance(value, bool):
            raise self.fail(field, f"must be true or false, not {value!r}")
        return value

    def text(self, field: str) -> str:
        """Return a string. Raises `ModelFileError`, also when the field is missing."""
        value = self._get(field, None)
        if not isinstance(value, str):
            raise self.fail(field, f"must be a string, not {value!r}")
        return value

    def token_ids(self, field: str) -> tuple[int, ...]:
        """Return one token id or several. Raises `ModelFileError`."""
        value = self.raw.get(field)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and i >= 0 for i in ids):
            raise self.fail(field, f"must hold token ids, not {value!r}")
        return tuple(ids)

    def _get(self, field: str, default: Any) -> Any:
        value = self.raw.get(field)
        if value is None:
            if default is None:
                raise self.fail(field, "is missing")
            return default
        return value
