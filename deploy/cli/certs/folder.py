"""The folder that PRFAAS_CERTS names: ca.pem, ca.key, and a pair of files for each process."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from deploy.cli.certs.authority import KeyPair, Shown, new_authority, new_member, shown
from deploy.cli.failure import CommandFailed
from shared.security.identity import Identity

AUTHORITY = "ca"


class FolderEntry(NamedTuple):
    """A certificate of the folder."""

    name: str  # of its files, without suffix
    shown: Shown | None
    problem: str  # empty when all is well
    is_key_private: bool


class CertificateFolder:
    """Owns the files. Nothing is overwritten unless the caller says so; keys are readable by their user alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def has_authority(self) -> bool:
        return (self.path / f"{AUTHORITY}.pem").exists()

    def has(self, member: Identity) -> bool:
        return (self.path / f"{_name(member)}.pem").exists()

    def init(self, days: int, *, is_forced: bool) -> str:
        """Make the authority; return the name of its files. Raises `CommandFailed` when there is one."""
        self._write(AUTHORITY, new_authority(datetime.now(UTC), days), is_forced=is_forced)
        return AUTHORITY

    def issue(self, member: Identity, hosts: list[str], days: int, *, is_forced: bool) -> str:
        """Make a member's certificate and return the name of its files. Raises `CommandFailed` when it has one."""
        name = _name(member)
        if not is_forced:
            self._refuse_existing(name)
        self._write(name, new_member(self._authority(), member, hosts, datetime.now(UTC), days), is_forced=is_forced)
        return name

    def entries(self) -> Iterator[FolderEntry]:
        """Yield all certificates, the authority first."""
        names = sorted((path.stem for path in self.path.glob("*.pem")), key=lambda name: (name != AUTHORITY, name))
        for name in names:
            yield self._entry(name)

    def _entry(self, name: str) -> FolderEntry:
        key, is_private = None, True
        try:
            with suppress(FileNotFoundError):
                key = self._key(name).read_bytes()
                is_private = not self._key(name).stat().st_mode & 0o077
            found = shown((self.path / f"{name}.pem").read_bytes(), key)
        except (OSError, ValueError, TypeError) as error:
            return FolderEntry(name, None, f"cannot be read: {error}", is_private)
        problem = ""
        if found.not_after < datetime.now(UTC):
            problem = "expired"
        elif key is None and name != AUTHORITY:
            problem = "has no key beside it"
        elif key is not None and not found.is_of_key:
            problem = "is not of the key beside it"
        return FolderEntry(name, found, problem, is_private)

    def _authority(self) -> KeyPair:
        try:
            return KeyPair((self.path / f"{AUTHORITY}.pem").read_bytes(), self._key(AUTHORITY).read_bytes())
        except OSError as error:
            raise CommandFailed(f"{error.filename}: {error.strerror}; `prfaas certs init` makes an authority") from None

    def _write(self, name: str, pair: KeyPair, *, is_forced: bool) -> None:
        if not is_forced:
            self._refuse_existing(name)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Each file appears whole. A service that reads between the two keeps what it has until they fit.
            for path, data, mode in (
                (self._key(name), pair.key, 0o600),
                (self.path / f"{name}.pem", pair.cert, 0o644),
            ):
                _replace(path, data, mode)
        except OSError as error:
            raise CommandFailed(f"{self.path}: {error}") from None

    def _refuse_existing(self, name: str) -> None:
        for path in (self.path / f"{name}.pem", self._key(name)):
            if path.exists():
                raise CommandFailed(f"{path} exists; --force overwrites it")

    def _key(self, name: str) -> Path:
        return self.path / f"{name}.key"


def _name(member: Identity) -> str:
    return f"{member.role}-{member.dc}"


def _replace(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
