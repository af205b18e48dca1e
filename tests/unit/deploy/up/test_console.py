"""What reaches the console and the log files."""

import errno
import io
from pathlib import Path

import pytest

from deploy.up.console import NUM_LAST_LINES, Console, warning_of

CHATTER = ['{"level": "info", "event": "hello"}', '{"level": "warning", "event": "careful", "error": "E"}', "plain"]


def test_only_warnings_and_the_lines_of_ready_are_shown_and_everything_is_kept(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(tmp_path / "logs", shown)
    for line in CHATTER:
        console.write("noisy", line)
    console.write("ready", "all set")
    console.say("over:", ["one", "two"])
    console.close()
    assert shown.getvalue().splitlines() == [
        "noisy: warning: careful error=E",
        "all set",
        "over:",
        "    one",
        "    two",
    ]
    assert (tmp_path / "logs/noisy.log").read_text().splitlines() == CHATTER
    assert (tmp_path / "logs/ready.log").read_text() == "all set\n"


def test_last_lines_are_of_one_life(tmp_path: Path) -> None:
    console = Console(tmp_path, io.StringIO())
    for number in range(100):
        console.write("a", str(number))
    assert console.take_last_lines("a") == [str(number) for number in range(100 - NUM_LAST_LINES, 100)]
    console.write("a", "next life")
    assert console.take_last_lines("a") == ["next life"]
    assert console.take_last_lines("silent") == []
    console.close()


def test_a_closed_terminal_is_no_reason_to_fail(tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "the terminal has gone")

    console = Console(tmp_path, Closed())
    console.say("stopping …")
    console.write("ready", "all set")
    console.close()
    assert (tmp_path / "ready.log").read_text() == "all set\n"


@pytest.mark.parametrize("line", ["", "text", "{", '{"level": "info", "event": "x"}', "{}", "[1]"])
def test_other_lines_are_no_warnings(line: str) -> None:
    assert warning_of(line) is None
