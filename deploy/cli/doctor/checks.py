"""Which checks are made, in order, and with what of the environment."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deploy.cli.doctor import cluster, machine, ports
from deploy.cli.doctor.finding import Finding, Level, failed, fine
from deploy.cli.gateway import GatewayClient
from deploy.up.environment import environment
from deploy.up.trust import is_encrypted

Check = Callable[[], Finding]


def before_start(commands: Mapping[str, str]) -> list[Finding]:
    """Check what would end a suite of these processes at its start."""
    runs_services = any("services." in command for command in commands.values())
    found = [machine.packages(), guarded("settings", _settings)] if runs_services else []
    wanted = ports.ports_of(commands, os.environ)
    if is_encrypted(os.environ) and runs_services:
        found.append(guarded("certificates", lambda: _certificates(commands)))
    return [*found, ports.ports(wanted, is_running_fine=False)]


def everything(
    commands: Mapping[str, str], client: GatewayClient, version: str, *, is_named: bool
) -> Iterator[Finding]:
    """Make all checks, one at a time. `commands`: of the Procfile; empty: nothing is started from here.

    `is_named`: somebody says that there is a gateway.
    """
    is_running = cluster.gateway_answers(client)
    yield machine.python()
    yield machine.packages()
    yield machine.compiler()
    sound = guarded("settings", _settings)
    yield sound
    if sound.level is Level.OK:
        yield from _of_settings(commands, is_running)
    if commands:
        yield ports.ports(ports.ports_of(commands, os.environ), is_running_fine=True)
    if is_running or is_named:
        yield cluster.gateway(client)
    else:
        yield fine("gateway", f"none answers at {client.url} yet; `prfaas up` starts one")
    if is_running:
        yield cluster.kafka_of_gateway(client)
        yield cluster.clock(client)
        yield cluster.versions(client, version)


def guarded(what: str, check: Check) -> Finding:
    """Make a check that imports the services' code, which may not be installed whole."""
    try:
        return check()
    except ModuleNotFoundError as error:
        return failed(what, f"the package {error.name} is missing", "make setup, or pip install what `packages` names")


def _settings() -> Finding:
    from deploy.cli.doctor.model import settings

    return settings()


def _certificates(commands: Mapping[str, str]) -> Finding:
    from deploy.cli.doctor.certificates import certificates
    from shared.errors import SettingsError

    try:
        return certificates(commands, environment(os.environ))
    except SettingsError as error:
        return failed("certificates", str(error), "see docs/security.md")


def _of_settings(commands: Mapping[str, str], is_running: bool) -> Iterator[Finding]:
    """Make the checks that need sound settings."""
    from deploy.cli.doctor.model import context, device, memory_bytes, model
    from services.cachepool.settings import PoolSettings
    from shared.config import load
    from shared.engine.settings import EngineSettings

    environ = environment(os.environ)
    engine, pool = load(EngineSettings, environ), load(PoolSettings, environ)
    yield guarded("model", lambda: model(engine))
    yield guarded("context", lambda: context(engine))
    yield guarded("device", lambda: device(engine))
    num_engines = _count(commands, r"services\.(?:prefill|decode)\b")
    num_pools = _count(commands, r"services\.cachepool\b")
    if num_engines or num_pools:
        needed_bytes = memory_bytes(engine, pool, num_engines, num_pools)
        yield machine.memory(needed_bytes, num_engines, num_pools, is_running=is_running)
    if num_pools and pool.object_url.startswith("file:"):
        folder = Path(unquote(urlsplit(pool.object_url).path))
        todo = "set PRFAAS_POOL_OBJECT_BYTES lower, or PRFAAS_POOL_OBJECT_URL to another folder"
        yield machine.disk(folder, num_pools * pool.object_bytes, f"objects of {num_pools} pools", todo)
    if "shared_memory" in pool.lanes:
        yield machine.shared_memory(pool.lane_folder)
    yield guarded("certificates", lambda: _certificates(commands))
    yield cluster.kafka(pool.kafka, is_needed=is_running or "PRFAAS_KAFKA" in os.environ)


def _count(commands: Mapping[str, str], pattern: str) -> int:
    return sum(re.search(pattern, command) is not None for command in commands.values())
