"""From a chat's messages and tools to its prompt, to the form of its answer, and to what the answer has to be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from services.gateway.api.bodies.chat import ChatBody, Message
from services.gateway.api.bodies.tools import ToolUse
from services.gateway.model import ServedModel
from services.gateway.request.generation import Prepared
from services.gateway.syntax.answers import AnswerReading, AnswerSyntax, reader_of
from services.gateway.syntax.formats import FORMATS
from services.gateway.syntax.grammar import CallRules, grammar_of
from services.gateway.syntax.parts import AnswerForm
from services.gateway.syntax.prompt import in_ordinary_messages
from services.gateway.syntax.reasoning import END_THINK, THINK, ReasoningCount
from shared.errors import BadRequest
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import Constraint, ConstraintKind


def render(
    model: ServedModel,
    messages: Sequence[Message],
    add_generation_prompt: bool | None = None,
    **variables: Any,
) -> str:
    """Return the text of a conversation. Raises `BadRequest` when the template rejects the messages."""
    told = [message.for_template() for message in messages]
    return model.tokenizer.chat.render(told, add_generation_prompt=add_generation_prompt is not False, **variables)


@dataclass(frozen=True)
class RenderedChat:
    """A chat's prompt, and how its answer is constrained and read."""

    text: str
    syntax: AnswerSyntax
    reading: AnswerReading
    constraint: Constraint | None  # in place of the body's own, if `constraint_field` is set
    constraint_field: str | None

    def applied(self, prepared: Prepared, tokenizer: Tokenizer) -> Prepared:
        """Return the prepared request with the answer's form and constraint."""
        if self.constraint_field is not None:
            bound = partial(replace, constraint=self.constraint)
            requests = tuple(replace(each, sampling=bound(each.sampling)) for each in prepared.requests)
            prepared = replace(prepared, requests=requests, constraint_field=self.constraint_field)
        reading = self.reading
        if reading.schemas is None and not reading.has_reasoning:
            return prepared
        markers = [tokenizer.added_ids[marker] for marker in self.syntax.markers if marker in tokenizer.added_ids]
        new_count = partial(ReasoningCount, tokenizer.token_bytes, is_opened=reading.is_opened)
        form = AnswerForm(partial(reader_of, self.syntax, reading), new_count if reading.has_reasoning else None)
        return replace(prepared, rules=replace(prepared.rules, shown_ids=frozenset(markers)), form=form)


def render_chat(model: ServedModel, body: ChatBody, syntax: AnswerSyntax) -> RenderedChat:
    """Raises `BadRequest`."""
    use = body.tool_use()
    if use.callable and syntax.tools is None:
        raise BadRequest("tools: this server takes none; PRFAAS_TOOL_PARSER is none", param="tools")
    text = _text(model, body, use, syntax)
    reading = AnswerReading(
        schemas=use.schemas if use.callable else None,
        max_calls=None if use.is_parallel else 1,
        has_reasoning=_has_reasoning(text, body, syntax),
        is_opened=text.rstrip().endswith(THINK),
        hidden=_hidden(model.tokenizer, body, syntax),
    )
    return _constrained(RenderedChat(text, syntax, reading, None, None), model.tokenizer, body, use)


def _text(model: ServedModel, body: ChatBody, use: ToolUse, syntax: AnswerSyntax) -> str:
    messages: Sequence[Mapping[str, Any]] = [message.for_template() for message in body.messages]
    tools: list[dict[str, Any]] | None = [tool.for_template() for tool in use.offered] or None
    if not syntax.template_knows_tools:
        messages, tools = in_ordinary_messages(messages, tools or ()), None
    wants_reply = body.add_generation_prompt is not False and not body.continue_final_message
    text = model.tokenizer.chat.render(
        messages, add_generation_prompt=wants_reply, tools=tools, **body.template_variables
    )
    return _continued(text, messages[-1]["content"]) if body.continue_final_message else text


def _continued(text: str, last: str) -> str:
    """Return a conversation's text up to the end of its last message's content."""
    for content in (last, last.strip()):
        place = text.rfind(content)
        if place >= 0:
            return text[: place + len(content)]
    raise BadRequest(
        "continue_final_message: the chat template does not show the last message as it is",
        param="continue_final_message",
    )


def _has_reasoning(text: str, body: ChatBody, syntax: AnswerSyntax) -> bool:
    """Return whether the answer may begin with reasoning: not behind the beginning of an answer or ended reasoning."""
    return syntax.has_reasoning and not body.continue_final_message and not text.rstrip().endswith(END_THINK)


def _hidden(tokenizer: Tokenizer, body: ChatBody, syntax: AnswerSyntax) -> tuple[str, ...]:
    if body.skip_special_tokens is False:
        return ()
    return tuple(marker for marker in syntax.markers if tokenizer.added_ids.get(marker) in tokenizer.special_ids)


def _constrained(chat: RenderedChat, tokenizer: Tokenizer, body: ChatBody, use: ToolUse) -> RenderedChat:
    """Return the chat with a grammar, if calls have to be or to keep their schemas, or reasoning goes before JSON."""
    own = body.constraint()
    if own is not None and own.kind is not ConstraintKind.JSON_SCHEMA:
        if use.callable:
            raise BadRequest(f"{body.constraint_field} does not go with tools", param=body.constraint_field)
        return replace(chat, reading=AnswerReading())  # the whole answer, and nothing of it reasoning
    if own is not None and use.is_required:
        raise BadRequest(
            f"{body.constraint_field} does not go with calls that are required", param=body.constraint_field
        )
    is_forced = use.is_required or (bool(use.callable) and (use.is_strict or own is not None))
    if not is_forced and (own is None or not chat.reading.has_reasoning):
        return chat
    rules = CallRules(
        schemas=use.schemas,
        is_required=use.is_required,
        is_parallel=use.is_parallel,
        has_reasoning=chat.reading.has_reasoning,
        is_opened=chat.reading.is_opened,
        answer_schema=None if own is None else json.loads(own.text),
    )
    field = "tools" if is_forced else body.constraint_field
    try:
        syntax = (chat.syntax.tools or FORMATS["hermes"]).forced
        constraint = Constraint(ConstraintKind.GRAMMAR, grammar_of(syntax, rules, tokenizer.added_ids.get))
    except BadRequest as error:
        raise BadRequest(f"{field}: {error}", param=field) from None
    return replace(chat, reading=replace(chat.reading, is_forced=True), constraint=constraint, constraint_field=field)
