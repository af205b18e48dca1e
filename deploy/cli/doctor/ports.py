"""Which ports the processes of a Procfile listen on, and who has taken them."""

import errno
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import psutil

from deploy.cli.doctor.finding import Finding, failed, fine

HOST = "127.0.0.1"
OURS = re.compile(r"\bservices\.(?:cachepool|decode|gateway|prefill)\b|\bdeploy\.devbroker\b|\bprfaas-dev\b")
"""In the command line of a process of the suite; the last is the name of the embedded broker's cluster."""

SUPERVISOR = re.compile(r"\bdeploy\.(?:up|cli)\b|\bprfaas up\b")
"""In the command line of who starts the processes of a suite again when they are killed."""

_PORT = re.compile(r"(?:PRFAAS_(?:GRPC|HTTP)_PORT=|--port[ =])(\S+)")
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


class PortHolder(NamedTuple):
    """Who listens on a port."""

    pid: int | None  # None: of another user; of a suite that is supervised: the supervisor's
    name: str
    is_ours: bool

    def __str__(self) -> str:
        return self.name if self.pid is None else f"{self.name} (pid {self.pid})"


def ports_of(commands: Mapping[str, str], environ: Mapping[str, str]) -> dict[int, str]:
    """Return the fixed ports that the commands of a Procfile listen on, each with its process's name."""
    found = {}
    for name, command in commands.items():
        expanded = _VARIABLE.sub(lambda match: environ.get(match[1]) or match[2], command)
        for text in _PORT.findall(expanded):
            if text.isdecimal() and int(text):
                found[int(text)] = name
    return found


def ports(wanted: Mapping[int, str], *, is_running_fine: bool) -> Finding:
    """Check that all ports are free. `is_running_fine`: or are held by a suite of ours."""
    problems = {port: problem for port in wanted if (problem := binding_problem(port)) is not None}
    if not problems:
        return fine("ports", f"{len(wanted)} ports are free" if wanted else "no fixed ports")
    holders = {port: holder_of(port) for port in problems}
    if all(holder is not None and holder.is_ours for holder in holders.values()):
        seen = f"{len(holders)} of {len(wanted)} ports are held by a suite that runs"
        if is_running_fine:
            return fine("ports", seen)
        pids = " ".join(sorted({str(holder.pid) for holder in holders.values() if holder is not None}))
        return failed("ports", seen, f"stop it by Ctrl-C where it was started, or: kill {pids}")
    told = [f"{port} of {wanted[port]}: {holders[port] or problem}" for port, problem in problems.items()]
    pids = " ".join(sorted({str(holder.pid) for holder in holders.values() if holder is not None and holder.pid}))
    todo = "change the ports in the Procfile; GATEWAY_PORT (or `prfaas up --port`) is the gateway's"
    return failed(
        "ports", f"taken: {'; '.join(told)}", f"stop what holds them (kill {pids}), or {todo}" if pids else todo
    )


def binding_problem(port: int, host: str = HOST) -> str | None:
    """Return why a port cannot be bound, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or errno.EIO)
    return None


def holder_of(port: int) -> PortHolder | None:
    """Return who listens on a port, as far as this user may see; None when nobody does."""
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return _holder(connection.pid)
    return None


def _holder(pid: int | None) -> PortHolder:
    with suppress(psutil.Error):
        if pid is not None:
            process = psutil.Process(pid)
            is_ours = OURS.search(" ".join(process.cmdline())) is not None
            parent = process.parent() if is_ours else None
            if parent is not None and SUPERVISOR.search(" ".join(parent.cmdline())):
                pid = parent.pid
            return PortHolder(pid, process.name(), is_ours)
    return PortHolder(None, "a process of another user", is_ours=False)
