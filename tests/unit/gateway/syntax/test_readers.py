"""What each format's reader makes of answers; however an answer is cut, its parts say the same."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.syntax.answers import PLAIN, AnswerReading, AnswerSyntax, reader_of
from services.gateway.syntax.calls import MAX_HELD_CHARS
from services.gateway.syntax.formats import FORMATS
from services.gateway.syntax.parts import (
    AnswerPart,
    AnswerReader,
    CallArguments,
    CallBegun,
    ContentPart,
    ReasoningPart,
    joined,
)

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "where": {"type": "object"},
        },
    },
    "now": {"type": "object", "properties": {}},
}
NAMES = list(FORMATS)


def reader(name: str, **changes: Any) -> AnswerReader:
    reasons = changes.get("has_reasoning", False)
    syntax = AnswerSyntax(FORMATS[name], has_reasoning=reasons, template_knows_tools=True)
    return reader_of(syntax, AnswerReading(schemas=SCHEMAS, **changes))


def read(reader: AnswerReader, *pieces: str) -> list[AnswerPart]:
    parts: list[AnswerPart] = []
    for piece in pieces:
        parts += reader.push(piece)
    return joined([*parts, *reader.finish()])


def told(parts: list[AnswerPart]) -> tuple[str, list[tuple[str, str]]]:
    """Return content and calls."""
    content, calls = "", list[tuple[str, str]]()
    for part in parts:
        if isinstance(part, ContentPart):
            content += part.text
        elif isinstance(part, CallBegun):
            assert part.call == len(calls)
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            assert part.call == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    return content, calls


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


WEATHER = ("weather", '{"city": "São \\"P\\" } </tool_call>"}')
CALLS = {
    "hermes": hermes(*WEATHER),
    "llama": f'{{"name": "weather", "parameters": {WEATHER[1]}}}',
    "qwen": (
        '<tool_call>\n<function=weather>\n<parameter=city>\nSão "P" }\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    ),
}
TOLD = {
    "hermes": WEATHER,
    "llama": WEATHER,
    "qwen": ("weather", '{"city": "São \\"P\\" }", "days": 3}'),
}
SEPARATORS = {"hermes": "\n", "llama": "; ", "qwen": "\n"}


@pytest.mark.parametrize("name", NAMES)
def test_one_call_and_several(name: str) -> None:
    assert told(read(reader(name), CALLS[name])) == ("", [TOLD[name]])
    both = f"\n{CALLS[name]}{SEPARATORS[name]}{CALLS[name]}\n"
    assert told(read(reader(name), both)) == ("", [TOLD[name]] * 2)
    assert told(read(reader(name, max_calls=1), both)) == ("", [TOLD[name]])


@pytest.mark.parametrize("name", ["hermes", "qwen"])
def test_content_around_calls_stays(name: str) -> None:
    content, calls = told(read(reader(name), f"I ask.\n{CALLS[name]} Done <b>."))
    assert (content, calls) == ("I ask.\n Done <b>.", [TOLD[name]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "plain text",
        "a < b, <tool_cal",
        "<tool_call>",
        "<tool_call>\nnot JSON\n</tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '{"name": "nobody", "parameters": {"a": 1}}',
        '{"answer": {"name": "weather"}}',
        "{'name': 'weather'}",
        '{"name": "weather", "param',
        "<tool_call>\n<function>",
        "<function=",
        "</tool_call>",
    ],
)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    assert told(read(reader(name), text)) == (text, [])


@pytest.mark.parametrize(
    ("name", "text", "call"),
    [
        ("hermes", '<tool_call>{"arguments": {"days": 1}, "name": "weather"}</tool_call>', '{"days": 1}'),
        ("hermes", '<tool_call>{"name": "weather"}</tool_call>', "{}"),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"days\\": 1}"}</tool_call>', '{"days": 1}'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 1}}', '{"days": 1}'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 1}', '{"days": 1}'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 1}, "id": 3}</tool_call>', '{"days": 1}'),
        ("llama", '<|python_tag|>{"name": "weather", "parameters": {"days": 1}}', '{"days": 1}'),
        ("llama", '{"type": "function", "name": "weather", "parameters": {"days": 1}}', '{"days": 1}'),
        ("llama", '{"type": "function", "function": {"name": "weather", "arguments": {}}}', "{}"),
        ("llama", '{"parameters": {"days": 1}, "name": "weather"}', '{"days": 1}'),
        ("qwen", "<function=weather>\n</function>", "{}"),
        ("qwen", "<function=weather><parameter=days>many</parameter></function>", '{"days": "many"}'),
        ("qwen", "<function=weather><parameter=exact>True</parameter></function>", '{"exact": true}'),
        (
            "qwen",
            '<function=weather><parameter=where>{"lat": 1}</parameter> x <parameter=new>\n7\n\n</parameter></function>',
            '{"where": {"lat": 1}, "new": "7\\n"}',
        ),
    ],
)
def test_what_models_make_of_their_formats(name: str, text: str, call: str) -> None:
    assert told(read(reader(name), text)) == ("", [("weather", call)])
    assert told(read(reader(name), *text)) == ("", [("weather", call)])


@pytest.mark.parametrize("name", NAMES)
def test_names_come_first_and_arguments_as_they_are_written(name: str) -> None:
    reading, parts = reader(name), list[AnswerPart]()
    num_fragments = 0
    for char in CALLS[name]:
        new = reading.push(char)
        parts += new
        num_fragments += sum(isinstance(part, CallArguments) for part in new)
    assert isinstance(parts[0], CallBegun)
    assert num_fragments > 15
    assert told([*parts, *reading.finish()]) == ("", [TOLD[name]])


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_cut_off_tells_what_there_is(name: str) -> None:
    text = CALLS[name][: CALLS[name].index("P") + 1]
    content, ((called, arguments),) = told(read(reader(name), text))
    assert (content, called) == ("", "weather")
    assert TOLD[name][1].startswith(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_back_has_a_bound(name: str) -> None:
    for begin in ('<tool_call>{"x": "', '{"parameters": {"x": "', "<tool_call><function=weather><parameter=days>"):
        reading = reader(name)
        num_told = sum(len(str(part)) for _ in range(40) for part in reading.push(begin if _ == 0 else "y" * 1000))
        assert num_told > 40_000 - MAX_HELD_CHARS - 1000


def test_reasoning_is_told_apart() -> None:
    def of(text: str, **changes: Any) -> list[AnswerPart]:
        found = [read(reader("hermes", has_reasoning=True, **changes), *pieces) for pieces in ((text,), tuple(text))]
        assert found[0] == found[1]
        return found[0]

    assert of("<think>\nhm\n\n</think>\n\nyes") == [ReasoningPart("hm"), ContentPart("yes")]
    assert of("hm</think>yes", is_opened=True) == [ReasoningPart("hm"), ContentPart("yes")]
    assert of("<think>hm</think>yes", is_opened=True) == [ReasoningPart("hm"), ContentPart("yes")]
    assert of("no <think>hm</think>") == [ContentPart("no <think>hm</think>")]
    assert of("<think>a\n\nb") == [ReasoningPart("a\n\nb")]
    assert of("<think></think>\n") == []
    content, calls = told(of(f"<think><tool_call></think>\n{CALLS['hermes']}"))
    assert (content, calls) == ("", [WEATHER])


def test_special_tokens_are_read_but_not_shown() -> None:
    reading = reader("llama", hidden=("<|python_tag|>",))
    assert read(reading, "<|python_tag|>", "search(1)") == [ContentPart("search(1)")]
    assert read(reader_of(PLAIN, AnswerReading()), "<tool_call>") == [ContentPart("<tool_call>")]


PIECES = [
    *CALLS.values(),
    "<tool_call>",
    "</tool_call>",
    "<function=weather>",
    "<function=",
    "</function>",
    "<parameter=city>",
    "<parameter=days>",
    "</parameter>",
    "<think>",
    "</think>",
    "<|python_tag|>",
    '{"name": "weather", "parameters": ',
    '{"name": "weather", "arguments": ',
    '{"name": "now"}',
    '{"city": "x"}',
    "{}",
    "}",
    "{",
    ", ",
    ";",
    "\n",
    " ",
    '"',
    "\\",
    "text",
    " " * 300,
    "3",
]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@given(st.sampled_from(NAMES), ANSWERS, st.data(), st.booleans(), st.booleans(), st.sampled_from([None, 1]))
def test_however_an_answer_is_cut_it_says_the_same(
    name: str, text: str, data: Any, has_reasoning: bool, is_opened: bool, max_calls: int | None
) -> None:
    changes = {"has_reasoning": has_reasoning, "is_opened": is_opened, "max_calls": max_calls}
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    whole = read(reader(name, **changes), text)
    assert read(reader(name, **changes), *pieces) == whole
    assert read(reader(name, **changes), *text) == whole


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from(["hermes", "llama"]), st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.booleans())
def test_any_arguments_come_back(name: str, arguments: dict[str, Any], is_ascii: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=is_ascii)
    text = hermes("weather", written) if name == "hermes" else f'{{"name": "weather", "parameters": {written}}}'
    assert told(read(reader(name), *text)) == ("", [("weather", written)])
