"""OpenAI's own client before a gateway whose workers are scripted, and before a whole suite of real processes.

Clients check strictly that answers have the types that OpenAI declares; `lax` does not, for the chunks of completions:
their type there has no null as a reason to end, which OpenAI's own server sends too.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.support.checkpoints import served
from tests.support.gateway import ScriptedSuite, running_suite
from tests.support.suite import Suite
from tests.support.suite import running_suite as running_processes

CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
TIMEOUT_S = 60.0
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


@pytest.fixture
async def client(suite: ScriptedSuite) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(suite) as client:
        yield client


@pytest.fixture
async def lax(suite: ScriptedSuite) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(suite, is_strict=False) as client:
        yield client


def client_of(suite: ScriptedSuite, max_retries: int = 0, *, is_strict: bool = True) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"{suite.client._base_url}/v1",
        api_key="none",
        max_retries=max_retries,
        timeout=TIMEOUT_S,
        _strict_response_validation=is_strict,
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("suite")
    with running_processes(folder, **served(folder), PRFAAS_CHAT_TEMPLATE=CHAT_TEMPLATE) as suite:
        yield suite


@pytest.fixture
async def real(processes: Suite) -> Suite:
    await processes.ready()
    return processes


@pytest.fixture
def openai(real: Suite) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{real.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=TIMEOUT_S,
        _strict_response_validation=True,
    ) as client:
        yield client
