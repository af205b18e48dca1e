"""From bytes to a body, and from pydantic's complaints to one sentence that names the field."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.errors import BadRequest
from shared.log import get_logger

log = get_logger()

B = TypeVar("B", bound=BaseModel)

_MAX_UNKNOWN_FIELDS = 1000


class UnknownFields:
    """Remembers which unknown fields were logged, each once; bounded, because clients choose the names."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, body: BaseModel) -> None:
        for name in body.model_extra or ():
            short = name[:64]
            if short not in self._seen and len(self._seen) < _MAX_UNKNOWN_FIELDS:
                self._seen.add(short)
                log.info("unknown_field_ignored", field=short, body=type(body).__name__)


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
