"""The types of fields of request bodies: their forms and bounds."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

MAX_PROMPTS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 256
SEEDS = 1 << 64
MAX_BIASES = 1024

# Bounds keep absurd numbers out of arithmetic and messages; the wire has 32 bits for most of them.
MAX_INT = (1 << 31) - 1
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
Natural = Annotated[int, Field(ge=0, le=MAX_INT)]
NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenIds = Annotated[list[Natural], Field(fail_fast=True)]


def _prompt_kind(value: Any) -> str | None:
    """Choose one branch by the first item: a plain union would report every item of a long list for every branch."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    if not value:
        return "<tokens>"
    if isinstance(value[0], str):
        return "<texts>"
    return "<token_lists>" if isinstance(value[0], list) else "<tokens>"


def _list_kind(value: Any) -> str:
    return "<many>" if isinstance(value, list) else "<one>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag("<token_lists>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
    ),
]
Priority = Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)]  # vLLM's extension: lower goes first, 0 is usual
KvFidelity = Literal["lossless", "int8", "int4"]  # ours: how exact the KV of the prompt's blocks has to be
Truncation = Annotated[int, Field(ge=-1, le=MAX_INT)]  # vLLM's extension: tokens of a prompt's end; -1: as many as fit
Seed = Annotated[int, Field(ge=-(1 << 63), lt=SEEDS)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)]
Stop = Annotated[
    Annotated[NonEmpty, Tag("<one>")]
    | Annotated[list[NonEmpty], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), Tag("<many>")],
    Discriminator(_list_kind),
]


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<many>")],
    Discriminator(_list_kind),
]
