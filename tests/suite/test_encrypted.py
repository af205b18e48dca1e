"""The whole suite with certificates: the same text as without, nothing plain, and no secret in any log."""

import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest

from deploy.cli.certs.folder import CertificateFolder
from shared.security.identity import Identity, ServiceRole
from tests.support.certificates import encrypted
from tests.support.checkpoints import served
from tests.support.suite import Suite, running_suite
from tests.support.texts import real_text
from tests.support.waiting import eventually

pytestmark = [pytest.mark.suite, pytest.mark.timeout(240)]

NUM_TOKENS = 900
PASSWORD = "opensesame-71c3"


async def prefilled_far_away(suite: Suite, ids: list[int]) -> str:
    """Return the text of a completion whose prompt the other datacenter has computed."""
    before = await suite.metric("prefill-east", "prefill_computed_blocks_total")
    answer = await suite.complete(ids, 24)
    assert await suite.metric("prefill-east", "prefill_computed_blocks_total") > before
    text: str = answer["choices"][0]["text"]
    return text


async def test_the_text_is_the_plain_one_over_every_lane_and_secrets_stay_secret(tmp_path: Path) -> None:
    model, texts = served(tmp_path), {}
    logs: dict[str, str] = {}
    schemes: dict[str, dict[str, str]] = {
        "plain": {},
        "encrypted": encrypted(tmp_path) | {"PRFAAS_LANES": "socket,grpc", "PRFAAS_LOG_LEVEL": "debug"},
    }
    for name, environ in schemes.items():
        (folder := tmp_path / name).mkdir()
        secret = {"PRFAAS_KAFKA_SASL_PASSWORD": PASSWORD}  # read, though this broker wants none
        with running_suite(folder, **model, **environ, **secret) as suite:
            await suite.ready()
            ids = (await suite.tokenize(real_text(20_000)))[:NUM_TOKENS]
            texts[name] = await prefilled_far_away(suite, ids)
            if environ:
                await refuses_what_it_should(suite, Path(environ["PRFAAS_CERTS"]))
                await goes_on_with_new_certificates(suite, Path(environ["PRFAAS_CERTS"]), ids)
            logs = {name: suite.log(name) for name in suite.services}
        keys = private_lines(tmp_path)
        for service, log in logs.items():
            assert PASSWORD not in log, service
            assert not [line for line in keys if line in log], service
    assert texts["plain"] == texts["encrypted"]
    assert '"lane": "socket"' in logs["cachepool-west"]
    assert '"lane": "socket"' in logs["decode-west"]


def private_lines(folder: Path) -> list[str]:
    """Return the lines of all private keys in a folder."""
    return [line for path in folder.rglob("*.key") for line in path.read_text().splitlines()[1:-1]]


async def refuses_what_it_should(suite: Suite, certs: Path) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{suite.http['gateway']}/health")
        trusting = ssl.create_default_context(cafile=certs / "ca.pem")
        async with session.get(f"{suite.url_of('decode-west')}/metrics", ssl=trusting) as reply:
            assert reply.status == 403
    with socket.create_connection(("127.0.0.1", suite.grpc["cachepool-west"])) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert plain.recv(100) in (b"", b"\x15\x03\x01\x00\x02\x02\x46")  # nothing, or an alert of TLS
    assert await suite.metric("decode-west", "connections_refused_total", kind="http", by="us") == 1
    assert await suite.metric("decode-west", "certificate_expiry_seconds") > 80 * 86_400


def replace_all(fresh: Path, certs: Path) -> None:
    for path in fresh.iterdir():
        shutil.copyfile(path, certs / f".{path.name}")
        (certs / f".{path.name}").replace(certs / path.name)


async def goes_on_with_new_certificates(suite: Suite, certs: Path, ids: list[int]) -> None:
    """Give all processes a new authority and new certificates while they run; none is restarted."""
    kept = [suite.pid(name) for name in suite.services]
    fresh = Path(encrypted(certs.parent / "fresh")["PRFAAS_CERTS"])
    replace_all(fresh, certs)

    def all_have_reloaded() -> bool:
        return all("certificate_reloaded" in suite.log(name) for name in suite.services)

    async def asked() -> bool:
        metrics = (suite.metric(name, "certificate_expiry_seconds") for name in suite.services)
        failures = await asyncio.gather(*metrics, return_exceptions=True)  # until a process has looked at its files
        return not any(failure for failure in failures if isinstance(failure, BaseException)) and all_have_reloaded()

    await eventually(asked)
    assert await prefilled_far_away(suite, [ids[1], *ids[1:]])
    assert [suite.pid(name) for name in suite.services] == kept
    assert set(suite.running) >= set(suite.services)


async def test_a_process_with_another_role_s_certificate_does_not_start(tmp_path: Path) -> None:
    environ = encrypted(tmp_path)
    certs = Path(environ["PRFAAS_CERTS"])
    member = Identity(ServiceRole.CACHEPOOL, "east")
    assert CertificateFolder(certs).has(member)
    for suffix in ("pem", "key"):
        shutil.copyfile(certs / f"prefill-east.{suffix}", certs / f"cachepool-east.{suffix}")
    suite = Suite(tmp_path, environ)
    code, output = await asyncio.to_thread(suite.run_once, "cachepool-east")
    assert code == 2
    assert "is the certificate of a prefill of east; this process is a cachepool of east" in output
