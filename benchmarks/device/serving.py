"""The whole suite with its engines on a device, each in a process of its own, serving a model of random weights."""

import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.device.model_files import write_model
from benchmarks.device.shapes import ServedShape
from benchmarks.suite import suite
from shared.model.attention.select import AttentionName
from shared.model.files.catalog import ModelFiles, resolve

_POOL = "exec env PRFAAS_DC={dc} PRFAAS_GRPC_PORT={{pool_{dc}}} PRFAAS_HTTP_PORT={{{status}}} {{pool}} {{cachepool}}"
_LINES = {
    "broker": "exec python -m deploy.devbroker --port {broker}",
    "cachepool-east": _POOL.format(dc="east", status="status0"),
    "cachepool-west": _POOL.format(dc="west", status="status1"),
    "prefill-east": "exec env PRFAAS_DC=east PRFAAS_GRPC_PORT={prefill} PRFAAS_HTTP_PORT={status2} "
    "PRFAAS_POOL=127.0.0.1:{pool_east} {prefill_engine} python -m services.prefill",
    "decode-west": "exec env PRFAAS_DC=west PRFAAS_GRPC_PORT={decode} PRFAAS_HTTP_PORT={status3} "
    "PRFAAS_POOL=127.0.0.1:{pool_west} {decode_engine} python -m services.decode",
    "gateway": "exec env PRFAAS_DC=west PRFAAS_HTTP_PORT={gateway} python -m services.gateway",
}
_STATUS = {
    "cachepool-east": "status0",
    "cachepool-west": "status1",
    "prefill-east": "status2",
    "decode-west": "status3",
}
_PORTS = ("broker", "pool_east", "pool_west", "prefill", "decode", "gateway", *_STATUS.values())


@dataclass(frozen=True)
class DeviceModel:
    """A model on disk, and how the processes that serve it are set: settings as `env` takes them."""

    shape: ServedShape
    files: ModelFiles
    cache: Path
    prefill_engine: str
    decode_engine: str

    @classmethod
    def write(
        cls,
        shape: ServedShape,
        scratch: Path,
        device: torch.device,
        attention: AttentionName,
        prefill_device: torch.device | None = None,
    ) -> "DeviceModel":
        """Write a model of the shape into `scratch`, to be served by both engines on `device` unless told otherwise."""
        directory, cache = scratch / shape.name.replace(" ", "-"), scratch / "cache"
        write_model(directory, cache, shape.config, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()

        def engine(of: torch.device, chunk_tokens: int) -> str:
            return (
                f"PRFAAS_DEVICE={of} PRFAAS_ATTENTION={attention} PRFAAS_KV_BYTES={shape.kv_bytes} "
                f"PRFAAS_CHUNK_TOKENS={chunk_tokens}"
            )

        prefill_engine = engine(prefill_device or device, shape.prefill_chunk_tokens)
        files = resolve(str(directory), cache)
        return cls(shape, files, cache, prefill_engine, engine(device, shape.chunk_tokens))


def procfile(
    ports: Mapping[str, int], settings: Mapping[str, str], without: Sequence[str], gateways: Mapping[str, str]
) -> str:
    """Return the lines of the suite's processes but those of `without`, which the last one does not wait for.

    `settings` are those of `pool`, `prefill_engine` and `decode_engine`, as `env` takes them. So are those of more
    `gateways`, by name.
    """
    lines = {name: line for name, line in _LINES.items() if name not in without}
    for name, own in gateways.items():
        port = ports[gateway_port(name)]
        lines[f"gateway-{name}"] = f"exec env PRFAAS_DC=west PRFAAS_HTTP_PORT={port} {own} python -m services.gateway"
    waited_for = [port for name, port in _STATUS.items() if name in lines] + [gateway_port(name) for name in gateways]
    also = " ".join(str(ports[port]) for port in waited_for)
    lines["ready"] = f"exec python -m deploy.ready --gateway http://127.0.0.1:{{gateway}} --also {also}"
    values = {**ports, **settings, "cachepool": "python -m services.cachepool"}
    return "".join(f"{name}: {line.format(**values)}\n" for name, line in lines.items())


def gateway_port(name: str) -> str:
    """Return the name of the port of one of the `gateways`."""
    return f"gateway_{name}"


@contextmanager
def running_suite(
    model: DeviceModel, without: Sequence[str] = (), gateways: Mapping[str, str] | None = None
) -> Iterator[dict[str, int]]:
    """Serve the model with all processes but those of `without`, and with more `gateways` of settings of their own.

    Yields the ports by name.
    """
    gateways = gateways or {}
    names = (*_PORTS, *map(gateway_port, gateways))
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    environ = {
        "PRFAAS_ROUTING_POLICY": "threshold",
        "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",  # where there is a prefill worker it is used
        "PRFAAS_MODEL": str(model.files.source),
        "PRFAAS_CACHE_DIR": str(model.cache),
        "PRFAAS_KAFKA": f"127.0.0.1:{ports['broker']}",
        "PRFAAS_MAX_MODEL_LEN": str(model.shape.max_tokens),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "Procfile"
        pool = (  # its memory is ready and registered from the start, as on every host with a GPU
            f"PRFAAS_POOL_BYTES={model.shape.pool_bytes} PRFAAS_POOL_AHEAD_BYTES={2 * model.shape.pool_bytes} "
            "PRFAAS_POOL_OBJECT_URL="
        )
        engines = {"prefill_engine": model.prefill_engine, "decode_engine": model.decode_engine}
        path.write_text(procfile(ports, {"pool": pool, **engines}, without, gateways))
        with suite(path, **environ):
            yield ports


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
