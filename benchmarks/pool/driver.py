"""One contestant: a server in a process of its own and up to `MAX_CLIENTS` clients in theirs, told what to do.

`python -m benchmarks.pool.driver MODULE PYTHON`, where `PYTHON -m MODULE server` and `PYTHON -m MODULE client ADDRESS`
speak the lines of `benchmarks.pool.lines`. All of it is one process group, which the parent stops while others run.
Commands are passed on to as many clients as they name; the answer is the time from the first start to the last end.
"""

import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pool.lines import Child, serve

MAX_CLIENTS = 4


class Driver:
    """Owns the server and the clients."""

    def __init__(self, module: str, python: str) -> None:
        self._command = [python, "-m", module]
        self.server = Child([*self._command, "server"])
        self.clients: list[Child] = []

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "resident_bytes":
            return {"seconds": 0.0, "bytes": resident_bytes(self.server.about["pid"])}
        num_clients = command.pop("clients", 1)
        while len(self.clients) < num_clients:
            self.clients.append(Child([*self._command, "client", str(len(self.clients)), self.server.about["address"]]))
        before = self._cpu_s(num_clients)
        for number, client in enumerate(self.clients[:num_clients]):
            client.send(**{**command, "name": f"{command['name']} {number}"})  # keys of its own for each
        answers = [client.answer() for client in self.clients[:num_clients]]
        ends, starts = (max(answer["ended"] for answer in answers), min(answer["started"] for answer in answers))
        server_cpu_s, client_cpu_s = (now - then for now, then in zip(self._cpu_s(num_clients), before, strict=True))
        return {
            **answers[0],
            "bytes": sum(answer["bytes"] for answer in answers),
            "seconds": ends - starts,
            "server_cpu_s": server_cpu_s,
            "client_cpu_s": client_cpu_s,
        }

    def _cpu_s(self, num_clients: int) -> tuple[float, float]:
        """Return the processor seconds of the server, what it has started included, and of so many clients."""
        return cpu_s(self.server.pid), sum(cpu_s(client.pid) for client in self.clients[:num_clients])

    def close(self) -> None:
        for child in (*self.clients, self.server):
            child.close()


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and of its living descendants."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def resident_bytes(pid: int) -> int:
    """Return the resident set of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no resident set")


def main() -> None:
    driver = Driver(sys.argv[1], sys.argv[2])
    try:
        serve(driver.server.about, driver.do)
    finally:
        driver.close()


if __name__ == "__main__":
    main()
