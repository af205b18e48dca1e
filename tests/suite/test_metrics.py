"""What running processes export is what the pages of metrics say."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.reference import PLACES, instruments
from shared.metrics import PREFIX
from tests.support.certificates import encrypted
from tests.support.checkpoints import served
from tests.support.suite import Suite, running_suite
from tests.support.texts import real_text

pytestmark = [pytest.mark.suite, pytest.mark.timeout(180)]

SECTIONS = {
    "gateway": ("Every process", "Gateway"),
    "cachepool": ("Every process", "Cache pool"),
    "prefill": ("Every process", "Prefill and decode", "Prefill"),
    "decode": ("Every process", "Prefill and decode", "Decode"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("metrics")
    objects = (folder / "objects").as_uri()
    with running_suite(folder, **served(folder), **encrypted(folder), PRFAAS_POOL_OBJECT_URL=objects) as suite:
        yield suite


async def test_each_process_exports_what_the_reference_says(running: Suite) -> None:
    await running.ready()
    await running.complete(real_text(3000), 2)
    for name in running.services:
        documented = {
            instrument.name.removesuffix("_total")
            for section in SECTIONS[name.split("-")[0]]
            for instrument in instruments(PLACES[section])
        }
        assert await exported(running, name) == documented, name


async def exported(suite: Suite, name: str) -> set[str]:
    """Return the names of the metrics that a process exports, those without a sample yet included."""
    async with (
        suite.session() as session,
        session.get(f"{suite.url_of(name)}/metrics") as response,
    ):
        families = text_string_to_metric_families(await response.text())
        names = {family.name for family in families if family.name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX) for name in names if not name.endswith("_created")}
