"""The gateway's HTTP API as commands use it: JSON, text, and streams of events. Blocking, each wait with a limit."""

import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import typer

from deploy.cli.failure import CommandFailed, GatewayRefused, GatewayUnreachable
from deploy.up.trust import reached, trust

DEFAULT_GATEWAY = "http://127.0.0.1:8000"
MAX_ANSWER_BYTES = 64 << 20
MAX_EVENT_BYTES = 4 << 20

KEY_VARIABLE = "PRFAAS_API_KEY"
"""The key that is sent along. Not an option: whoever lists processes sees those."""

UNAVAILABLE = 503


def checked_url(url: str) -> str:
    """Return a gateway's URL without a slash at its end. Raises `typer.BadParameter`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        guess = f"; did you mean http://{url}?" if "://" not in url and url else ""
        raise typer.BadParameter(f"{url!r} is not an http or https URL{guess}")
    return (reached(url, os.environ) if url == DEFAULT_GATEWAY else url).rstrip("/")


GatewayUrl = Annotated[
    str,
    typer.Option("--gateway", envvar="PRFAAS_GATEWAY", metavar="URL", callback=checked_url, help="The gateway."),
]


@dataclass(frozen=True)
class GatewayClient:
    """Calls one gateway. Every call raises `GatewayUnreachable`, and `GatewayRefused` when the answer is an error."""

    url: str
    timeout_s: float = 10.0  # without a byte

    def json(self, path: str, *, also: int = 200) -> Any:
        """Return the JSON at a path. `also`: an error status whose answer is JSON of interest too."""
        try:
            with self._opened(path) as response:
                return _parsed(self.url, response.read(MAX_ANSWER_BYTES))
        except _Answered as answered:
            if answered.status != also:
                raise answered.refusal() from None
            return _parsed(self.url, answered.body)

    def text(self, path: str) -> str:
        """Return the text at a path."""
        try:
            with self._opened(path) as response:
                return response.read(MAX_ANSWER_BYTES).decode(errors="replace")
        except _Answered as answered:
            raise answered.refusal() from None

    def clock_ahead_s(self) -> float | None:
        """Return how far the gateway's clock is ahead of ours, to a second; None if it does not tell its time."""
        before = time.time()
        try:
            with self._opened("/livez") as response:
                told = response.headers.get("Date")
        except _Answered as answered:
            raise answered.refusal() from None
        if told is None:
            return None
        middle = (before + time.time()) / 2
        return parsedate_to_datetime(told).timestamp() + 0.5 - middle  # the header leaves the second's fraction out

    def events(self, path: str, body: dict[str, Any] | None = None) -> Generator[str, None, None]:
        """Yield the data of each server-sent event until the stream ends; closing the iterator ends the call."""
        try:
            with self._opened(path, body) as response:
                while line := response.readline(MAX_EVENT_BYTES):
                    if len(line) == MAX_EVENT_BYTES:
                        raise CommandFailed(f"{self.url} sent an event of more than {MAX_EVENT_BYTES} bytes")
                    if line.startswith(b"data:"):
                        yield line.removeprefix(b"data:").strip().decode(errors="replace")
        except _Answered as answered:
            raise answered.refusal() from None

    @contextmanager
    def _opened(self, path: str, body: dict[str, Any] | None = None) -> Iterator[HTTPResponse]:
        data = None if body is None else json.dumps(body).encode()
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = Request(f"{self.url}{path}", data, headers)
        try:
            with urlopen(request, timeout=self.timeout_s, context=trust(os.environ)) as response:
                yield response
        except HTTPError as error:
            with error:
                raise _Answered(error.code, error.read(MAX_ANSWER_BYTES)) from None
        except (OSError, HTTPException) as error:  # URLError, timeouts and broken connections among them
            raise GatewayUnreachable(self._why(error)) from error

    def _why(self, error: Exception) -> str:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return f"{self.url} did not answer within {self.timeout_s:g} s"
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"no gateway answers at {self.url} ({told}); start one with `prfaas up`, or name it with --gateway"


class _Answered(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body

    def refusal(self) -> GatewayRefused:
        try:
            message = str(json.loads(self.body)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            message = f"the gateway answered with status {self.status}"
        return GatewayRefused(self.status, message)


def _parsed(url: str, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise CommandFailed(f"{url} answers, but not as a gateway of PrfaaS: this is no JSON") from None
