"""deploy.ready against a gateway that comes up in stages."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy import ready
from deploy.ready import curl_line, wait, watch


class Stages(BaseHTTPRequestHandler):
    """Not healthy at first, then healthy without workers, then answering; counts what it was asked.

    The gateway falls ill once more, for two answers.
    """

    healthy_after = 2
    ill_again = (6, 7)
    answers_after = 2
    asked: dict[str, int]

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if self.path == "/v1/models":
            self._send(200, {"data": [{"id": "tiny"}]})
        else:
            asked = self.asked[self.path]
            is_ill = asked <= self.healthy_after or (self.path == "/health" and asked in self.ill_again)
            self._send(503 if is_ill else 200, {})

    def do_POST(self) -> None:
        self.asked["POST"] = self.asked.get("POST", 0) + 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "tiny"
        assert body["max_tokens"] == 1
        self._send(200 if self.asked["POST"] > self.answers_after else 503, {"choices": []})

    def _send(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def gateway() -> Iterator[str]:
    Stages.asked = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Stages) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_ready_means_that_a_request_succeeded(gateway: str) -> None:
    assert wait(gateway, [gateway], limit_s=60) == "tiny"
    assert Stages.asked["/health"] == Stages.healthy_after + 1
    assert Stages.asked["/readyz"] == Stages.healthy_after + 1
    assert Stages.asked["POST"] == Stages.answers_after + 1


def test_not_ready_in_time_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert wait("http://127.0.0.1:1", [], limit_s=0.2) is None
    assert "still waiting for http://127.0.0.1:1/health" in capsys.readouterr().out


def test_it_is_seen_that_a_part_fails_and_that_all_answer_again(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "WATCH_S", 0.01)
    assert wait(gateway, [gateway], limit_s=60) == "tiny"
    asked = Stages.asked["POST"]
    assert watch(gateway, [gateway]) >= 0
    assert Stages.asked["/health"] == Stages.ill_again[-1] + 1
    assert Stages.asked["POST"] == asked + 1


def test_the_curl_line_is_one_line_with_valid_json() -> None:
    line = curl_line("http://h:1", "m")
    assert line.startswith("curl http://h:1/v1/completions ")
    assert "\n" not in line
    assert json.loads(line.split("-d '")[1].rstrip("'"))["model"] == "m"
