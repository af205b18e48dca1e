"""`/openapi.json` describes what the gateway really serves, and `/docs` shows it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator
from playwright.async_api import expect
from pydantic import BaseModel

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.openapi import answers
from services.gateway.api.openapi.document import openapi_document
from services.gateway.api.openapi.notes import NOTES
from services.gateway.api.openapi.operations import OPERATIONS
from tests.support.browser import needs_chromium, page_of, violations
from tests.support.gateway import ScriptedSuite, events_of, running_suite
from tests.support.waiting import LIMIT_S

expect.set_options(timeout=1000 * LIMIT_S)

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


async def described(suite: ScriptedSuite) -> dict[str, Any]:
    async with suite.client.get("/openapi.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        document: dict[str, Any] = await response.json()
        return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_it_is_valid(suite: ScriptedSuite) -> None:
    document = await described(suite)
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_every_route_is_described_and_nothing_else(suite: ScriptedSuite) -> None:
    found = {(method, path) for method, path, _ in operations(await described(suite))}
    assert set(OPERATIONS) <= found
    for method, path in found:
        url = path.replace("{", "").replace("}", "")
        async with suite.client.request("OPTIONS", url) as response:
            assert response.status == 405, url  # the path is there; a path that is not is 404
            assert method in response.headers.get("Allow", (await response.json())["error"]["message"])


async def test_every_route_says_what_it_is_for_what_it_takes_and_how_it_fails(suite: ScriptedSuite) -> None:
    document = await described(suite)
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for method, path, operation in operations(document):
        assert operation["tags"][0] in [tag["name"] for tag in document["tags"]]
        assert operation["summary"], path
        assert {"200", "500"} <= set(operation["responses"])
        if method == "POST" and not path.endswith("/cancel"):
            assert operation["requestBody"]["required"], path


@pytest.mark.parametrize(("name", "schema"), [("CompletionBody", CompletionBody), ("ChatBody", ChatBody)])
async def test_bodies_are_described_with_all_their_fields(
    suite: ScriptedSuite, name: str, schema: type[CompletionBody | ChatBody]
) -> None:
    properties = (await described(suite))["components"]["schemas"][name]["properties"]
    assert set(properties) == set(schema.model_fields)
    refused = {field for field, one in properties.items() if one.get("deprecated")}
    assert refused == set(schema.neutral) & set(properties)
    assert all(properties[field]["description"].startswith("Not supported.") for field in refused)


def test_notes_are_about_fields_that_are_there() -> None:
    fields: set[str] = set()
    for operation in OPERATIONS.values():
        fields |= set(operation.body.model_fields if operation.body else ())
    assert set(NOTES) <= fields


def test_a_route_without_an_entry_is_described_by_its_handler() -> None:
    async def odd(_request: web.Request) -> web.Response:
        """Answer oddly."""
        return web.Response()

    app = web.Application()
    app.router.add_post("/odd/{id:.+}", odd)
    document = openapi_document(app.router, "1")
    assert document["paths"]["/odd/{id}"]["post"]["summary"] == "Answer oddly."
    assert document["paths"]["/odd/{id}"]["post"]["parameters"][0]["name"] == "id"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def undescribed(answer: Any) -> list[str]:
    """Return the fields that an answer has and its type has not, at any depth."""
    if isinstance(answer, list):
        return [name for item in answer for name in undescribed(item)]
    if not isinstance(answer, BaseModel):
        return []
    below = [name for field in answer.model_fields_set for name in undescribed(getattr(answer, field))]
    return [*(answer.model_extra or ()), *below]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", {"prompt": "hello", "n": 2}),
        ("POST", "/v1/completions", {"prompt": "hello", "return_token_ids": True}),
        ("POST", "/v1/chat/completions", CHAT),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/{name}", None),
        ("POST", "/tokenize", {"prompt": "hello", "return_token_strs": True}),
        ("POST", "/detokenize", {"tokens": [1, 2]}),
        ("GET", "/v1/prefixes", None),
        ("GET", "/v1/requests", None),
        ("GET", "/health", None),
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/version", None),
    ],
)
async def test_answers_are_as_described(suite: ScriptedSuite, method: str, path: str, body: Any) -> None:
    schema = OPERATIONS[method, path].answer
    assert schema is not None
    async with suite.client.request(method, path.replace("{name}", "tiny"), json=body) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert undescribed(schema.model_validate(await response.json())) == []


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "hello"}), ("/v1/chat/completions", CHAT)])
async def test_events_are_as_described(suite: ScriptedSuite, path: str, body: Any) -> None:
    schema = OPERATIONS["POST", path].event
    assert schema is not None
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with suite.client.post(path, json=streamed) as response:
        assert response.content_type == "text/event-stream"
        *events, done = await events_of(response)
    assert done == "[DONE]"
    assert len(events) > 2
    assert [undescribed(schema.model_validate(event)) for event in events] == [[]] * len(events)


async def test_errors_are_as_described(suite: ScriptedSuite) -> None:
    for path, body in (("/v1/completions", {}), ("/v1/completions", {"prompt": "p", "model": "x"}), ("/x", {})):
        async with suite.client.post(path, json=body) as response:
            assert response.status in (400, 404)
            assert undescribed(answers.ErrorAnswer.model_validate(await response.json())) == []


@needs_chromium
@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_shows_every_route_and_everybody_can_use_it(suite: ScriptedSuite, scheme: str) -> None:
    document = await described(suite)
    url = f"{suite.client._base_url}/docs#post_v1_chat_completions"
    async with page_of(url, color_scheme=scheme) as page:
        await expect(page.locator(".operation")).to_have_count(len(list(operations(document))))
        chat = page.locator("#post_v1_chat_completions")
        await expect(chat.get_by_role("table", name="Fields of ChatBody")).to_be_visible()
        await expect(chat).to_contain_text("The conversation so far.")
        await expect(chat.locator("table").first).to_contain_text("X-Request-Id")
        await page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert await violations(page) == []


@needs_chromium
@pytest.mark.timeout(120)
async def test_the_page_is_as_wide_as_a_phone(suite: ScriptedSuite) -> None:
    async with page_of(f"{suite.client._base_url}/docs", viewport={"width": 360, "height": 700}) as page:
        await expect(page.locator(".operation").first).to_be_visible()
        await page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
