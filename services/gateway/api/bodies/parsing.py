"""From bytes to a body, and from pydantic's complaints to one sentence that names the field."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from services.gateway.api.bodies.known import is_known
from shared.errors import BadRequest
from shared.log import get_logger

log = get_logger()

B = TypeVar("B", bound=BaseModel)

_MAX_UNKNOWN_FIELDS = 1000
_INDEX = re.compile(r"\[\d+\]")


class UnknownFields:
    """Decides about fields that a body does not have.

    Those that nobody knows are refused, or logged, each once; bounded, because clients choose the names.
    """

    def __init__(self, *, are_refused: bool = False) -> None:
        self._are_refused = are_refused
        self._seen: set[str] = set()

    def check(self, body: BaseModel) -> None:
        """Raise `BadRequest` naming the first field that asks for what is not done, or may not be there."""
        for path, value in _extras(body, ""):
            if is_known(path, value):
                continue
            if self._are_refused:
                raise BadRequest(f"nobody here knows the field {path[:256]}", param=path[:256])
            self._note(path, body)

    def _note(self, path: str, body: BaseModel) -> None:
        short = _INDEX.sub("[]", path)[:64]
        if short not in self._seen and len(self._seen) < _MAX_UNKNOWN_FIELDS:
            self._seen.add(short)
            log.info("unknown_field_ignored", field=short, body=type(body).__name__)


def _extras(body: BaseModel, before: str) -> Iterator[tuple[str, Any]]:
    """Yield paths and values of fields that a body and the objects in it do not have."""
    for name, value in (body.model_extra or {}).items():
        yield before + name, value
    for name in body.model_fields_set:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            yield from _extras(value, f"{before}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):  # most long lists are of numbers
            for number, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _extras(item, f"{before}{name}[{number}].")


def parse(cls: type[B], body: bytes) -> B:
    """Read a body. Raises `BadRequest` whose `param` is the path of the first field that is wrong."""
    try:
        return cls.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from None


def _bad_request(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return BadRequest(f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}")
    if not first["loc"]:
        return BadRequest("the body must be a JSON object")
    param = _path(first["loc"])
    if kind == "missing":
        return BadRequest(f"{param} is required", param=param)
    message = message.removeprefix("Value error, ")
    return BadRequest(f"{param}: {message[:1].lower()}{message[1:]}", param=param)


def _path(loc: Sequence[str | int]) -> str:
    """Return a field's path as in `messages[0].content`, without the tags of union branches below it."""
    path = str(loc[0])
    for part in loc[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}"
    return path
