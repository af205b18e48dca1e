"""Chat templates, rendered as transformers renders them: sandboxed Jinja with the same filters and functions."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import BadRequest, ModelFileError

DEFAULT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[message['role']] or message['role'] }}: "
    "{{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models without a template of their own: `User: …`, `Assistant: …`, one message a line."""


_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")  # how special tokens are usually written


class ChatTemplate:
    """A compiled template. Raises `ModelFileError` when it cannot be compiled."""

    def __init__(self, text: str, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self.text = text
        self.literals = (*special_tokens.values(), *_TAG.findall(text))
        """Texts that may be special tokens of the template."""
        environment = _environment()
        try:
            self._template = environment.from_string(text)
            self.variables = jinja2.meta.find_undeclared_variables(environment.parse(text))
            """The names of what the template can be told."""
        except jinja2.TemplateError as error:
            raise ModelFileError(f"{source}: the chat template cannot be compiled: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the prompt for a conversation. It holds BOS where the template writes one: encode without adding it.

        `variables` are further values that the template may use. Raises `BadRequest` when it rejects the messages.
        """
        values = {**self._special_tokens, "tools": None, "documents": None, **variables}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **values)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRequest(f"the chat template rejects these messages: {error}", param="messages") from error


def find_template(directory: Path, tokenizer_config: Mapping[str, Any], override: str | None) -> tuple[str, str]:
    """Return (template, where it comes from): the override, else the model's own, else `DEFAULT_TEMPLATE`.

    `override` is a path to an existing file, or the template itself.
    """
    if override:
        path = Path(override).expanduser()
        if "{" not in override and "\n" not in override:
            if not path.is_file():
                raise ModelFileError(f"{override}: the chat template is neither an existing file nor a template")
            return path.read_text(encoding="utf-8"), str(path)
        return override, "PRFAAS_CHAT_TEMPLATE"
    own = directory / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8"), str(own)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {item.get("name"): item.get("template") for item in template}.get("default")
    if isinstance(template, str) and template:
        return template, str(directory / "tokenizer_config.json")
    return DEFAULT_TEMPLATE, "the built-in default"


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
