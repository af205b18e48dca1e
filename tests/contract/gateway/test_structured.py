"""Constraints over HTTP: what reaches decode, and what is refused before any worker hears of it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.model.grammar.grammars import Grammars
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import ScriptedSuite, running_suite, says

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


async def test_a_constraint_travels_as_it_was_written(suite: ScriptedSuite) -> None:
    suite.decode.behave = says('{"a":1}', finish=pb.FINISH_REASON_STOP)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    body = {"messages": USER, "response_format": form, "n": 2}
    async with suite.client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
    assert [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [('{"a":1}', "stop")] * 2
    for call in suite.decode.calls:
        assert call.request.sampling.constraint == pb.Constraint(
            kind=pb.CONSTRAINT_KIND_JSON_SCHEMA, text='{"type":"object"}'
        )
    await suite.complete(response_format={"type": "text"})
    assert not suite.decode.calls[-1].request.sampling.HasField("constraint")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"guided_grammar": "nonsense"}, "guided_grammar"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "objekt"}}}},
            "response_format",
        ),
        ({"guided_json": {"description": "x" * 10_000, "not": {}}}, "guided_json"),
        ({"stream": True, "guided_regex": "a(?!b)"}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_what_cannot_be_compiled_is_refused_before_anybody_generates(
    suite: ScriptedSuite, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"messages": USER, **fields} if "chat" in path else {"prompt": "hello", **fields}
    async with suite.client.post(path, json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert error["message"].startswith(f"{param}: ")
    assert suite.decode.calls == []
    await suite.works()


async def test_others_are_served_while_a_constraint_is_compiled(
    suite: ScriptedSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, held, make = threading.Event(), threading.Event(), Grammars._make

    def slow(self: Grammars, constraint: Any) -> Any:
        begun.set()
        held.wait(60)
        return make(self, constraint)

    monkeypatch.setattr(Grammars, "_make", slow)
    waiting = asyncio.create_task(suite.complete(guided_regex="fine"))
    try:
        await asyncio.to_thread(begun.wait, 60)
        await suite.works()
        assert not waiting.done()
    finally:
        held.set()
    assert (await waiting)["choices"][0]["text"] == "fine"


async def test_the_same_schema_again_is_not_compiled_again(
    suite: ScriptedSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = Grammars._make

    def noted(self: Grammars, constraint: Any) -> Any:
        made.append(constraint)
        return make(self, constraint)

    monkeypatch.setattr(Grammars, "_make", noted)
    for _ in range(3):
        await suite.complete(guided_json=json.dumps({"type": "object"}))
    assert len(made) == 1
