"""From a request body to what the engines are asked: token ids, block keys, limits. CPU-bound: not for the loop."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.responses import LOGPROBS, ResponsesBody
from services.gateway.api.bodies.sampling import Sampling
from services.gateway.api.chats import render_chat
from services.gateway.model import ServedModel
from services.gateway.request.generation import Echo, GenerationRequest, Prepared, with_keys
from services.gateway.request.text import TextRules
from services.gateway.syntax.answers import PLAIN, AnswerSyntax
from shared.errors import BadRequest, ContextTooLong
from shared.kv.codec import Fidelity
from shared.model.text.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
_FIELDS_OF_RESPONSES = {"messages": "input", "response_format": "text", "max_completion_tokens": "max_output_tokens"}
MAX_CHOICES = 128


def prepare_completion(model: ServedModel, body: CompletionBody) -> Prepared:
    """Raises `BadRequest`, `ContextTooLong`, `ModelNotFound`."""
    model.check_name(body.model)
    body.check_supported()
    if body.echo and body.truncate_prompt_tokens is not None:
        raise BadRequest("echo does not go with truncate_prompt_tokens", param="echo")
    prompts = _completion_prompts(model, body)
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    prepared = _prepare(model, body, prompts, lambda _num_tokens: max_tokens, "prompt")
    if body.echo:
        prepared = replace(prepared, echoes=_echoes(model, body, prompts))
    return replace(prepared, num_shown=body.n or 1) if body.chooses_best else prepared


def prepare_chat(model: ServedModel, body: ChatBody, *, syntax: AnswerSyntax = PLAIN) -> Prepared:
    """`syntax`: how the model writes reasoning and calls. Raises `BadRequest`, `ContextTooLong`, `ModelNotFound`."""
    model.check_name(body.model)
    body.check_supported()
    chat = render_chat(model, body, syntax)
    # The template writes special tokens itself, unless the caller wants more.
    prompt = model.texts.encode(chat.text, body.cache_salt or "", bool(body.add_special_tokens))
    wanted = body.max_completion_tokens or body.max_tokens

    def limit(num_tokens: int) -> int:
        room = max(1, model.max_model_len - num_tokens)
        return wanted or min(model.defaults.max_tokens or room, room)

    return chat.applied(_prepare(model, body, [prompt], limit, "messages"), model.tokenizer)


def prepare_response(model: ServedModel, body: ResponsesBody, *, syntax: AnswerSyntax) -> Prepared:
    """Raises what `prepare_chat` does, for the fields of this body."""
    model.check_name(body.model)
    body.check_supported()
    try:
        prepared = prepare_chat(model, body.chat(), syntax=syntax)
    except BadRequest as error:
        error.param = _FIELDS_OF_RESPONSES.get(error.param or "", error.param)
        raise
    if prepared.form is not None and body.num_logprobs is not None:
        raise BadRequest(f"include: {LOGPROBS} does not go with tools or reasoning", param="include")
    field = prepared.constraint_field
    return replace(prepared, constraint_field=_FIELDS_OF_RESPONSES.get(field or "", field))


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raise `BadRequest` naming the first id that the model does not have."""
    if token_ids and max(token_ids) >= vocab_size:
        wrong = next(token_id for token_id in token_ids if token_id >= vocab_size)
        raise BadRequest(f"{param}: token id {wrong} is not in the vocabulary of {vocab_size}", param=param)


def _completion_prompts(model: ServedModel, body: CompletionBody) -> list[list[int]]:
    add_special = body.add_special_tokens is not False
    prompts: list[list[int]] = []
    for item in _items(body.prompt):
        if not item:
            raise BadRequest("prompt must not be empty", param="prompt")
        if isinstance(item, str):
            prompts.append(model.texts.encode(item, body.cache_salt or "", add_special))
        else:
            check_token_ids(item, model.vocab_size, "prompt")
            prompts.append(item)
    if not prompts or not all(prompts):
        raise BadRequest("prompt must hold at least one token", param="prompt")
    return prompts


def _echoes(model: ServedModel, body: CompletionBody, prompts: Sequence[Sequence[int]]) -> tuple[Echo, ...]:
    skip = body.skip_special_tokens is not False
    if body.tells_prompt:
        return tuple(_spelt(model.tokenizer, token_ids, skip) for token_ids in prompts)
    items = _items(body.prompt)
    return tuple(Echo(item if isinstance(item, str) else model.tokenizer.decode(item, skip)) for item in items)


def _spelt(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool) -> Echo:
    """Return the text of tokens, and where each of them, or the character that it is a part of, begins in it."""
    detokenizer = tokenizer.detokenizer(skip_special_tokens)
    offsets: list[int] = []
    pieces: list[str] = []
    num_chars = 0
    for token_id in token_ids:
        offsets.append(num_chars)
        pieces.append(detokenizer.push(token_id))
        num_chars += len(pieces[-1])
    return Echo("".join([*pieces, detokenizer.finish()]), offsets)


def _items(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Return the prompts of any of the four forms as a list."""
    if isinstance(prompt, str):
        return [prompt]
    texts_or_lists: list[str | list[int]] = [item for item in prompt if not isinstance(item, int)]
    return texts_or_lists or [[item for item in prompt if isinstance(item, int)]]


def _prepare(
    model: ServedModel, body: Sampling, prompts: list[list[int]], max_tokens: Callable[[int], int], part: str
) -> Prepared:
    salt = body.cache_salt or ""
    num_choices = body.num_choices
    if len(prompts) * num_choices > MAX_CHOICES:
        field = "n" if num_choices == (body.n or 1) else "best_of"
        raise BadRequest(f"{field}: {len(prompts)} prompts with {num_choices} choices each are too many", param=field)
    fidelity = Fidelity[(body.kv_fidelity or "lossless").upper()]
    requests: list[GenerationRequest] = []
    for whole in prompts:
        token_ids = _truncated(model, body, whole, max_tokens)
        limit = max_tokens(len(token_ids))
        _check_context(model.max_model_len, len(token_ids), limit, part)
        sampling = body.sampling_params(limit, model.vocab_size, model.tokenizer.eos_ids, model.defaults)
        request = with_keys(model, GenerationRequest(token_ids, (), sampling, salt, body.priority or 0), fidelity)
        # One choice is enough to tell of the prompt, of which each token but the first follows something.
        requests.append(replace(request, scoring=body.scoring) if len(token_ids) > 1 else request)
        requests += [replace(request, sampling=sampling.for_choice(i)) for i in range(1, num_choices)]
    rules = TextRules(
        stop=body.stop_strings,
        include_stop=bool(body.include_stop_str_in_output),
        min_tokens=body.min_tokens or 0,
        skip_special_tokens=body.skip_special_tokens is not False,
        hidden_ids=model.hidden_ids | frozenset(body.stop_token_ids or ()),
        tells_all=body.tells_prompt,
    )
    return Prepared(tuple(requests), rules, num_choices)


def _truncated(model: ServedModel, body: Sampling, token_ids: list[int], max_tokens: Callable[[int], int]) -> list[int]:
    """Return the end of a prompt that is asked for. Raises `BadRequest` where nothing would be left."""
    wanted = body.truncate_prompt_tokens
    if wanted is None:
        return token_ids
    if wanted == 0:
        raise BadRequest("truncate_prompt_tokens must leave at least one token", param="truncate_prompt_tokens")
    room = wanted if wanted > 0 else max(1, model.max_model_len - max_tokens(len(token_ids)))
    return token_ids[-room:]


def _check_context(max_model_len: int, num_tokens: int, max_tokens: int, part: str) -> None:
    if num_tokens + max_tokens > max_model_len:
        raise ContextTooLong(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_tokens + max_tokens} tokens ({num_tokens} in the {part}, {max_tokens} in the completion). "
            f"Please reduce the length of the {part} or completion.",
            param=part,
        )
