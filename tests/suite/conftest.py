"""A suite that serves a tiny model, for tests to which the model does not matter; others have one of their own."""

from collections.abc import Iterator

import pytest

from tests.support.checkpoints import served
from tests.support.suite import Suite, running_suite

CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("suite")
    with running_suite(folder, **served(folder), PRFAAS_CHAT_TEMPLATE=CHAT_TEMPLATE) as suite:
        yield suite


@pytest.fixture
async def suite(running: Suite) -> Suite:
    await running.ready()
    return running
