"""The identity of a model: a sha256 over its files' contents, remembered by (path, size, mtime) for quick starts."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from shared.errors import ModelFileError
from shared.ids import ModelFingerprint


def fingerprint(files: Iterable[Path], cache_dir: Path) -> ModelFingerprint:
    """Return the fingerprint of a model that consists of `files`: equal contents, equal fingerprint, wherever they lie.

    One file's fingerprint is its sha256; several files' is the sha256 over their names and sums.
    """
    sums = [(path.name, _file_sum(path, cache_dir)) for path in files]
    if len(sums) == 1:
        return ModelFingerprint(sums[0][1])
    digest = hashlib.sha256()
    for name, value in sums:
        digest.update(f"{name}\0{value}\n".encode())
    return ModelFingerprint(digest.hexdigest())


def _file_sum(path: Path, cache_dir: Path) -> str:
    try:
        status = path.stat()
        stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        memo = cache_dir / "sums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
        known = _read_memo(memo)
        if known is not None and known[:3] == stamp:
            return str(known[3])
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    write_atomically(memo, json.dumps([*stamp, value]).encode())
    return value


def _read_memo(memo: Path) -> list[object] | None:
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, list) and len(known) == 4 else None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide the cache from the other services' users
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
