"""What encryption costs: the hand-over over socket lanes, in plain text and with mTLS, side by side.

The same four processes as in `benchmarks.handover` move the same prompts, once with plain connections and once with
certificates on all of them; passes take turns. `cipher` is the bound: what one core encrypts, or decrypts, of one TLS
session in memory, in the pieces that lanes use. Each byte is encrypted at one end and decrypted at the other, by the
threads of the connections, which hold no lock of Python meanwhile: where cores are free they do it side by side.
"""

import argparse
import asyncio
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import harness
from benchmarks.handover.__main__ import QUICK_PASSES, measure_size
from benchmarks.handover.counting import counting
from benchmarks.handover.shapes import KIB, MIB
from benchmarks.harness import Check, Report, Row, Spread, at_most
from deploy.cli.certs.folder import CertificateFolder
from shared.security.identity import Identity, ServiceRole

PASSES = 8
SIZES, QUICK_SIZES = (48 * KIB, 256 * KIB), (48 * KIB,)
PLAIN, ENCRYPTED = "socket", "socket_tls"
MOST_LOST = 0.2
PIECE_BYTES = 64 * KIB
ALL = "all three at once"


def cipher_rows(num_bytes: int, repeats: int) -> list[Row]:
    """Return what one core encrypts and decrypts in a second, in GB."""
    with tempfile.TemporaryDirectory(prefix="prfaas-certs-") as folder:
        certs = CertificateFolder(Path(folder))
        certs.init(1, is_forced=False)
        certs.issue(Identity(ServiceRole.CACHEPOOL, "east"), ["localhost"], 1, is_forced=False)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(Path(folder) / "cachepool-east.pem", Path(folder) / "cachepool-east.key")
        client = ssl.create_default_context(cafile=Path(folder) / "ca.pem")
    found = [_ciphered(client, server, num_bytes) for _ in range(repeats)]
    rates = {
        "encrypt": [num_bytes / row.encrypting_s / 1e9 for row in found],
        "decrypt": [num_bytes / row.decrypting_s / 1e9 for row in found],
    }
    return [
        {"cipher": found[0].name, "does": does, **Spread.of(rate).cells("gb_per_s")} for does, rate in rates.items()
    ]


class Ciphered(NamedTuple):
    """Seconds of the processor for some bytes."""

    name: str
    encrypting_s: float
    decrypting_s: float


def _ciphered(client: ssl.SSLContext, server: ssl.SSLContext, num_bytes: int) -> Ciphered:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname="localhost")
    far = server.wrap_bio(up, down, server_side=True)
    for end in (near, far) * 4:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    data, view = bytes(PIECE_BYTES), memoryview(bytearray(PIECE_BYTES))
    encrypting_s = decrypting_s = 0.0
    for _ in range(num_bytes // PIECE_BYTES):
        started = time.thread_time()
        near.write(data)
        written = time.thread_time()
        left = PIECE_BYTES
        while left:
            left -= far.read(left, view)  # type: ignore[operator]
        encrypting_s += written - started
        decrypting_s += time.thread_time() - written
    name = near.cipher()
    return Ciphered(name[0] if name else "", encrypting_s, decrypting_s)


def lost(rows: list[Row]) -> list[Check]:
    """Return how much of the throughput encryption takes, for each size of entries, over the whole way."""
    rates = {
        (row["entry_kib"], row["lane"]): float(row["gb_per_s"])  # type: ignore[arg-type]
        for row in rows
        if row.get("hop") == ALL and row.get("memory") == "used" and "gb_per_s" in row
    }
    sizes = sorted({size for size, _ in rates}, key=str)
    shares = {size: 1 - rates[size, ENCRYPTED] / rates[size, PLAIN] for size in sizes}
    return [
        at_most(f"share of throughput lost, entries of {size} KiB", share, MOST_LOST) for size, share in shares.items()
    ]


def measure(options: argparse.Namespace) -> Report:
    passes, sizes = (QUICK_PASSES, QUICK_SIZES) if options.quick else (options.passes, SIZES)
    report = Report(settings={"passes": passes, "lanes": f"{PLAIN}, {ENCRYPTED}"})
    report.rows += cipher_rows(64 * MIB if options.quick else 512 * MIB, 3 if options.quick else 7)
    with counting(copies=False) as counted:
        for size in sizes:
            rows = asyncio.run(measure_size(counted, (PLAIN, ENCRYPTED), "cpu", size, passes))
            report.rows += [row for row in rows if "end" not in row]
    report.checks += lost(report.rows)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passes", type=int, default=PASSES, help="that are counted (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(harness.main("encryption", measure, add_options, description=__doc__))
