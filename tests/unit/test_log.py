"""Log lines: one shape for ours and for the libraries'."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from shared.ids import RequestId
from shared.log import bound_request, bound_request_of, configure, current_request_id, get_logger, request_id_or_new


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_carry_service_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure("decode", dc="west")
    log = get_logger()
    with bound_request("req-9"):
        log.info("blocks_published", num_blocks=3, key=b"\x01\xff")
    log.debug("not_shown")
    (line,) = lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "event": "blocks_published",
        "level": "info",
        "service": "decode",
        "dc": "west",
        "request_id": "req-9",
        "num_blocks": 3,
        "key": "01ff",
    }


def test_library_records_take_the_same_road(capsys: pytest.CaptureFixture[str]) -> None:
    configure("decode")
    text = "a prompt"
    try:
        raise KeyError(f"gone after {len(text)}")
    except KeyError:
        with bound_request("req-9"):
            logging.getLogger("grpc._cython.cygrpc").exception("Unexpected [%s]", "x")
    (line,) = lines(capsys)
    assert line["event"] == "Unexpected [x]"
    assert (line["level"], line["logger"], line["service"]) == ("error", "grpc._cython.cygrpc", "decode")
    assert line["request_id"] == "req-9"
    assert "KeyError" in json.dumps(line["exception"])
    assert "a prompt" not in json.dumps(line), "local variables do not get into logs"


@pytest.mark.parametrize(("level", "num_lines"), [("info", 0), ("debug", 1)])
def test_aiokafka_reconnecting_is_debug(capsys: pytest.CaptureFixture[str], level: str, num_lines: int) -> None:
    configure("decode", level=level)
    logging.getLogger("aiokafka.conn").error("Unable connect to node")
    found = lines(capsys)
    assert [line["level"] for line in found] == ["debug"] * num_lines


def test_console_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure("decode", fmt="console")
    get_logger().warning("lease_expired", lease=4)
    out = capsys.readouterr().out
    assert "lease_expired" in out
    assert not out.startswith("{")


def test_request_ids_nest_and_end() -> None:
    assert current_request_id() is None
    with bound_request("outer"):
        with bound_request("inner"):
            assert current_request_id() == "inner"
        assert current_request_id() == "outer"
    assert current_request_id() is None


def test_a_loop_of_many_is_bound_to_one_at_a_time() -> None:
    with bound_request("loop"):
        with bound_request_of(RequestId("one")):
            assert current_request_id() == "one"
        with bound_request_of(None):
            assert current_request_id() == "loop"


@pytest.mark.parametrize("text", [None, "", "a" * 129, "new\nline", "caf\u00e9", "\x7f"])
def test_unfit_request_ids_are_replaced(text: str | None) -> None:
    assert request_id_or_new(text) != text
    assert request_id_or_new("abc-123") == "abc-123"
