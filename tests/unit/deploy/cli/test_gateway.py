"""The client against servers that are no gateway, slow, or wrong."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer

from deploy.cli.doctor.cluster import clock
from deploy.cli.doctor.finding import Level
from deploy.cli.failure import CommandFailed, GatewayRefused, GatewayUnreachable
from deploy.cli.gateway import GatewayClient, checked_url


class Odd(BaseHTTPRequestHandler):
    """Answers each path in a way of its own."""

    released = threading.Event()

    def do_GET(self) -> None:
        match self.path:
            case "/page":
                self._send(200, b"<html>")
            case "/refused":
                self._send(429, b'{"error": {"message": "later, please"}}')
            case "/broken":
                self._send(502, b"<html>")
            case "/slow":
                self.released.wait(60)
            case "/short":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"{")
            case "/events":
                self._send(200, b": comment\n\ndata: one\n\nevent: x\ndata:two\n\n")
            case _:
                self._send(200, b'{"alive": true}')

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(int(time.time()) - 90)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    Odd.released.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Odd.released.set()
        server.shutdown()
        thread.join()


def test_what_is_no_json_is_no_gateway(url: str) -> None:
    with pytest.raises(CommandFailed, match="answers, but not as a gateway of PrfaaS"):
        GatewayClient(url).json("/page")


def test_an_error_has_the_gateways_words_or_at_least_its_status(url: str) -> None:
    with pytest.raises(GatewayRefused, match="later, please") as refused:
        GatewayClient(url).json("/refused")
    assert refused.value.status == 429
    with pytest.raises(GatewayRefused, match="status 502"):
        GatewayClient(url).text("/broken")


def test_an_error_status_that_is_asked_for_is_an_answer(url: str) -> None:
    assert GatewayClient(url).json("/refused", also=429)["error"]["message"] == "later, please"


def test_silence_and_half_an_answer_are_no_answer(url: str) -> None:
    with pytest.raises(GatewayUnreachable, match=r"did not answer within 0.2 s"):
        GatewayClient(url, timeout_s=0.2).json("/slow")
    with pytest.raises(CommandFailed):
        GatewayClient(url).json("/short")


def test_events_are_the_lines_of_data(url: str) -> None:
    with closing(GatewayClient(url).events("/events")) as events:
        assert list(events) == ["one", "two"]


def test_the_gateways_clock_is_read_off_its_answers(url: str) -> None:
    ahead_s = GatewayClient(url).clock_ahead_s()
    assert ahead_s is not None
    assert -92 < ahead_s < -88
    finding = clock(GatewayClient(url))
    assert finding.level is Level.WARN
    assert re.match(r"the gateway's clock is (89|90|91) s behind this machine's", finding.why)


@pytest.mark.parametrize("given", ["localhost:8000", "", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not an http or https URL"):
        checked_url(given)


def test_a_slash_at_the_end_makes_no_difference() -> None:
    assert checked_url("https://host:1/") == "https://host:1"
