"""The process that is the WAN: it owns a namespace and a TAP for each site and moves frames between them, late.

Commands are JSON lines on its standard input, answers on its output; it ends with its input, so that whoever started it
may die in any way and leave nothing behind: the namespaces have no other name than this process.
"""

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.wan.kernel import new_namespace, open_tap
from benchmarks.wan.line import Direction, Line
from benchmarks.wan.segments import VNET_BYTES, Losses, wire_bytes

DEVICE = "wan0"
FRAME_BYTES = 1 << 17
TICK_S = 0.001
"""The relay looks at its sites so often while there is traffic: waking up for each frame costs several times what
carrying it does. What is read up to a tick late is given out up to a tick early."""

READS_IN_A_ROW = 32
"""Frames read from one site before the others have their turn, so that what is due is never long overdue."""

BUFFER_BYTES = 64 << 20
SYSCTLS = {
    "ipv4/tcp_rmem": f"4096 131072 {BUFFER_BYTES}",
    "ipv4/tcp_wmem": f"4096 65536 {BUFFER_BYTES}",
    "ipv4/tcp_slow_start_after_idle": "0",  # a link that was idle for a moment is as wide as before
    "ipv4/tcp_no_metrics_save": "1",  # what one measurement learns of a path must not help the next one
    # Frames of at least 8 KiB at a round trip of 30 ms, on slow links too: else two segments make one, and both ends
    # wake up for each. Linux 5.18 and later.
    "ipv4/tcp_tso_rtt_log": "13",
    "ipv6/conf/all/disable_ipv6": "1",
}
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def address(site: int) -> str:
    return f"10.77.0.{site + 1}"


def mac(site: int) -> str:
    return f"02:00:00:00:00:{site + 1:02x}"


@dataclass
class Site:
    namespace: int  # a descriptor: everything inside lives as long as it
    tap: int


def make_site(number: int, num_sites: int, congestion: str) -> Site:
    """Make a namespace with a TAP; all other sites are its neighbours. Raises OSError, CalledProcessError."""
    namespace = new_namespace()
    for name, value in SYSCTLS.items():
        if (setting := Path("/proc/sys/net", name)).exists():
            setting.write_text(value)
    if congestion:
        CONGESTION.write_text(congestion)
    tap = open_tap(DEVICE)
    _ip("link", "set", "lo", "up")
    _ip("link", "set", DEVICE, "address", mac(number), "mtu", "1500", "txqueuelen", "10000", "up")
    _ip("address", "add", f"{address(number)}/24", "dev", DEVICE)
    for other in range(num_sites):
        if other != number:  # nobody has to ask who has an address
            _ip("neighbour", "add", address(other), "lladdr", mac(other), "dev", DEVICE)
    return Site(namespace, tap)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Relay:
    """Moves frames between sites; the last byte of a frame's destination says where to."""

    def __init__(self, sites: list[Site], line: Line) -> None:
        self._sites = sites
        self._site_of = {site.tap: number for number, site in enumerate(sites)}
        pairs = [(a, b) for a in range(len(sites)) for b in range(len(sites)) if a != b]
        self._directions = {pair: Direction(line) for pair in pairs}
        self.reshape(line)

    def reshape(self, line: Line) -> None:
        for direction in self._directions.values():
            direction.line = line
        self._losses = {pair: Losses(line.loss, seed) for seed, pair in enumerate(self._directions)}

    def carried(self) -> list[dict[str, int]]:
        return [
            {
                "source": a,
                "target": b,
                "bytes": d.bytes_carried,
                "frames": d.frames_carried,
                "dropped": d.frames_dropped,
            }
            for (a, b), d in self._directions.items()
        ]

    def deliver(self) -> float | None:
        """Write what has arrived; return the seconds until more will have."""
        by_now = time.monotonic() + TICK_S
        for (_, target), direction in self._directions.items():
            while (frame := direction.pop(by_now)) is not None:
                os.write(self._sites[target].tap, frame)
        due = [direction.next_due for direction in self._directions.values()]
        nearest = min((d for d in due if d is not None), default=None)
        return None if nearest is None else max(0.0, nearest - TICK_S - time.monotonic())

    def take(self, tap: int) -> bool:
        """Read what a site sends. Return whether that was all."""
        source = self._site_of[tap]
        for _ in range(READS_IN_A_ROW):
            try:
                frame = os.read(tap, FRAME_BYTES)
            except BlockingIOError:
                return True
            pair = (source, frame[VNET_BYTES + 5] - 1)
            if pair in self._directions:
                now = time.monotonic()
                for part in self._losses[pair].survivors(frame):
                    self._directions[pair].push(part, wire_bytes(part), now)
        return False

    @property
    def taps(self) -> list[int]:
        return list(self._site_of)


def serve(relay: Relay, commands: int, answers: TextIO) -> None:
    """Relay until `commands` ends."""
    pending = b""
    while True:
        ready, _, _ = select.select([*relay.taps, commands], [], [], relay.deliver())
        is_all = True
        for descriptor in ready:
            if descriptor != commands:
                is_all = relay.take(descriptor) and is_all
                continue
            data = os.read(commands, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _answer(relay, json.loads(line), answers)
        if is_all:
            time.sleep(TICK_S)


def _answer(relay: Relay, command: dict[str, Any], answers: TextIO) -> None:
    if "line" in command:
        relay.reshape(Line(**command["line"]))
    print(json.dumps(relay.carried()), file=answers, flush=True)


def main() -> int:
    options = json.loads(os.fdopen(os.dup(0), "rb", buffering=0).readline())
    try:
        num_sites, congestion = options["num_sites"], options["congestion"]
        sites = [make_site(number, num_sites, congestion) for number in range(num_sites)]
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
        print(json.dumps({"error": reason.strip()}), flush=True)
        return 1
    print(json.dumps({"namespaces": [site.namespace for site in sites]}), flush=True)
    serve(Relay(sites, Line(**options["line"])), sys.stdin.fileno(), sys.stdout)
    return 0


def start_line(num_sites: int, line: Line, congestion: str) -> bytes:
    """Return what a relay reads first."""
    options = {"num_sites": num_sites, "line": asdict(line), "congestion": congestion}
    return json.dumps(options).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
