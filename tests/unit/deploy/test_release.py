"""A release in a small repository of its own."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.release import VERSION_LINE, ReleaseError, release

ROOT = Path(__file__).resolve().parents[3]


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.com")
    for name in ("pyproject.toml", "changes/template.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    text = VERSION_LINE.sub('version = "0.1.0"', (tmp_path / "pyproject.toml").read_text())
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n<!-- releases -->\n\n## 0.1.0 (2026-01-01)\n\n- First.\n")
    (tmp_path / "changes/pools-may-fly.added.md").write_text("Pools may fly\nover water.\n")
    (tmp_path / "changes/no-more-leaks.fixed.md").write_text("Nothing leaks.\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def test_a_release_gathers_the_fragments_commits_and_tags(repository: Path) -> None:
    assert release("0.2.0", repository) == "v0.2.0"
    changelog = (repository / "CHANGELOG.md").read_text()
    assert re.sub(r"\d{4}-\d\d-\d\d", "DAY", changelog) == (
        "# Changelog\n\n<!-- releases -->\n\n## 0.2.0 (DAY)\n\n### Added\n\n- Pools may fly\n  over water.\n\n"
        "### Fixed\n\n- Nothing leaks.\n\n## 0.1.0 (DAY)\n\n- First.\n"
    )
    assert 'version = "0.2.0"' in (repository / "pyproject.toml").read_text()
    assert sorted(path.name for path in (repository / "changes").iterdir()) == ["template.md"]
    assert git(repository, "tag", "--points-at", "HEAD") == "v0.2.0"
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "1.0.0.", "two", "v2.0.0", "1.0.00"])
def test_a_version_that_is_none_or_not_newer_is_refused(repository: Path, version: str) -> None:
    with pytest.raises(ReleaseError):
        release(version, repository)
    assert git(repository, "status", "--porcelain") == ""


def test_uncommitted_changes_and_a_tag_that_is_there_are_refused(repository: Path) -> None:
    git(repository, "tag", "v0.3.0")
    with pytest.raises(ReleaseError, match=r"v0\.3\.0 is there already"):
        release("0.3.0", repository)
    (repository / "new").touch()
    with pytest.raises(ReleaseError, match="not committed"):
        release("0.4.0", repository)
    assert git(repository, "log", "--format=%s") == "first"


def test_each_fragment_of_this_repository_has_a_known_kind() -> None:
    names = [path.name for path in (ROOT / "changes").iterdir() if path.name != "template.md"]
    assert [name for name in names if not re.fullmatch(r"[a-z0-9-]+\.(breaking|added|changed|fixed)\.md", name)] == []
