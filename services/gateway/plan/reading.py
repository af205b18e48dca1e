"""Reads the planner's TOML files and checks their form."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.gateway.plan.schema import CapacityFile, EgressFile
from shared.errors import SettingsError


def read(path: Path) -> CapacityFile | EgressFile:
    """Read a file and check its form. Raises `SettingsError`, a line for each problem."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None
    return checked(path, data)


def checked(path: Path, data: dict[str, Any]) -> CapacityFile | EgressFile:
    """Check the form of a file's content. Raises `SettingsError`, a line for each problem."""
    try:
        return EgressFile.model_validate(data) if data.get("kind") == "egress" else CapacityFile.model_validate(data)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{path}: {problem}" for problem in _problems(error))) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in found["loc"] if not str(part).startswith("<"))
        message = found["msg"].removeprefix("Value error, ")
        reason = {"missing": "is required", "extra_forbidden": "is not a known key"}.get(found["type"], message)
        yield f"{key}: {reason[:1].lower()}{reason[1:]}"
