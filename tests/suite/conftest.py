"""One running suite for the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.support.suite import Suite, running_suite


@pytest.fixture(scope="package")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The default model in float32: what it computes can be compared token by token."""
    with running_suite(tmp_path_factory.mktemp("suite"), PRFAAS_DTYPE="float32", PRFAAS_KV_BYTES="2GiB") as suite:
        yield suite


@pytest.fixture(autouse=True)
async def ready(suite: Suite) -> None:
    await suite.ready()
