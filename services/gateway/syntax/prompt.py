"""Tools in the prompt of a model whose chat template knows none: as Hermes has them, in ordinary messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.gateway.syntax.hermes import CLOSE, OPEN

Messages = Sequence[Mapping[str, Any]]

_TOOLS: Final = (
    "# Tools\n\nYou may call functions to help the user. These are their signatures, between <tools> and </tools>:\n"
    "<tools>\n{tools}\n</tools>\n\n"
    "To call one, answer with a JSON object of its name and its arguments, between these tags:\n"
    f'{OPEN}\n{{{{"name": "<function>", "arguments": {{{{…}}}}}}}}\n{CLOSE}'
)


def in_ordinary_messages(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages of systems, users and assistants only, which say the same. Without tools, calls and results
    they are as they were."""
    found: list[dict[str, Any]] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result and was_result:  # many templates want users and assistants in turn
            found[-1]["content"] += f"\n{_result(message)}"
        elif is_result:
            found.append({"role": "user", "content": _result(message)})
        elif message.get("tool_calls"):
            found.append({"role": message["role"], "content": _with_calls(message)})
        else:
            found.append(dict(message))
        was_result = is_result
    return _with_tools(found, tools) if tools else found


def _with_tools(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    text = _TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if messages and messages[0]["role"] in ("system", "developer"):
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _result(message: Mapping[str, Any]) -> str:
    return f"<tool_response>\n{message['content']}\n</tool_response>"


def _with_calls(message: Mapping[str, Any]) -> str:
    """Return the text of a message as the model would have written it."""
    calls = [call["function"] for call in message["tool_calls"]]
    objects = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    texts = [f"{OPEN}\n{json.dumps(each, ensure_ascii=False)}\n{CLOSE}" for each in objects]
    return "\n".join([message["content"], *texts] if message["content"] else texts)
