"""Files that change under a running process."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.errors import SettingsError
from shared.security.reloading import CHECK_S, Reloading


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("one")
    return tmp_path / "file"


def reading(path: Path, clock: Clock) -> Reloading[str]:
    def make() -> str:
        text = path.read_text()
        if text == "bad":
            raise SettingsError("bad")
        return text

    return Reloading([path], make, what="a file", clock=clock)


def test_a_change_is_seen_at_the_next_look(path: Path) -> None:
    files = reading(path, clock := Clock())
    path.write_text("other")
    assert files.current() == "one"
    clock.now += CHECK_S
    assert files.current() == "other"


def test_what_did_not_change_stays_the_same_object(path: Path) -> None:
    files = reading(path, clock := Clock())
    first = files.current()
    clock.now += CHECK_S
    assert files.current() is first


def test_a_link_that_points_elsewhere_is_a_change(path: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("first")
    files = reading(link, clock := Clock())
    (tmp_path / "fresh").symlink_to("second")
    os.replace(tmp_path / "fresh", link)
    clock.now += CHECK_S
    assert files.current() == "second"


def test_the_last_good_value_stays_and_the_log_says_so_once(path: Path) -> None:
    files = reading(path, clock := Clock())
    path.write_text("bad")
    with capture_logs() as logs:
        for _ in range(3):
            clock.now += CHECK_S
            assert files.current() == "one"
        path.unlink()
        path.write_text("good")
        clock.now += CHECK_S
        assert files.current() == "good"
    assert [entry["event"] for entry in logs] == ["certificate_not_reloaded", "certificate_reloaded"]


def test_the_first_reading_must_succeed(path: Path) -> None:
    path.write_text("bad")
    with pytest.raises(SettingsError):
        reading(path, Clock())
