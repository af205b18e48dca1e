"""Fields of other servers' bodies that ours do not have: those that change no answer, and what to do about others.

Names are those of OpenAI's API, vLLM, SGLang, llama.cpp, TGI, Mistral and OpenRouter. A field that a body has is not
looked up here: what is done with it is then its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from shared.errors import BadRequest


class RefusedFields(NamedTuple):
    """Fields that ask for what is not done here."""

    names: str  # divided by spaces
    advice: str
    neutral: tuple[Any, ...] = ()  # values that ask for nothing


HARMLESS: Mapping[str, str] = {
    "annotations": "of a message: where an earlier answer took its text from",
    "cache_control": "caches find a prompt by its tokens",
    "cache_prompt": "caches find a prompt by its tokens",
    "custom_labels": "a label for somebody else's metrics",
    **dict.fromkeys(
        ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        "does nothing without dry_multiplier",
    ),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), "does nothing without mirostat"),
    **dict.fromkeys(("dynatemp_exponent", "smoothing_curve"), "does nothing without a range of temperatures"),
    "adaptive_decay": "does nothing without adaptive_target",
    "length_penalty": "does nothing without beam search",
    "min_keep": "all filters leave a token",
    "xtc_threshold": "does nothing without xtc_probability",
    "disable_structured_outputs_any_whitespace": "a hint to a compiler of grammars",
    "guided_decoding_backend": "there is one compiler of grammars",
    "id_slot": "the router places requests",
    "include_obfuscation": "events are sent as they are",
    "include_reasoning": "says where reasoning is shown",
    "keep_alive": "the model always stays loaded",
    "metadata": "nothing is stored",
    "parallel_tool_calls": "without tools there are no calls",
    "prediction": "a hint that saves time elsewhere",
    "prompt_cache_key": "caches find a prompt by its tokens",
    "prompt_cache_options": "caches find a prompt by its tokens",
    "prompt_cache_retention": "pools keep blocks by their worth; /v1/prefixes keeps them for sure",
    "refusal": "of a message: that an earlier answer was none",
    "request_id": "the header X-Request-Id names a request",
    "return_cached_tokens_details": "usage has cached_tokens",
    "rid": "the header X-Request-Id names a request",
    "safety_identifier": "names an end user",
    "separate_reasoning": "says where reasoning is shown",
    "service_tier": "there is one tier; priority orders requests",
    "spaces_between_special_tokens": "the tokenisers here put none there",
    "store": "nothing is stored",
    "stream_reasoning": "says when reasoning is shown",
    "timings_per_token": "/v1/requests has every request's timeline",
}
"""They may be there: no answer depends on them. With the reason why not."""

_LOGPROBS = "it is not told; logprobs and top_logprobs are"
_DECIDED_HERE = "the router decides where a request runs and how its KV travels"
_TEXTS = "prompts are text or token ids"
_TEMPLATE = "whether a model reasons is up to its chat template"

REFUSED: tuple[RefusedFields, ...] = (
    # What ours call otherwise.
    RefusedFields("n_predict max_new_tokens num_predict max_output_tokens", "use max_tokens", (-1,)),
    RefusedFields("repeat_penalty", "use repetition_penalty", (1,)),
    RefusedFields("random_seed", "use seed"),
    RefusedFields("logit_bias_exp", "use logit_bias"),
    RefusedFields("stop_sequence stop_sequences", "use stop", ([],)),
    RefusedFields("custom_token_bans banned_tokens", "use logit_bias", ("", [])),
    RefusedFields("no_stop_trim", "use include_stop_str_in_output", (False,)),
    RefusedFields("ignore_eos_token ban_eos_token", "use ignore_eos", (False,)),
    RefusedFields("regex", "use structured_outputs: {regex: …}", ("",)),
    RefusedFields("ebnf grammar", "use structured_outputs: {grammar: …}", ("",)),
    RefusedFields("json_schema", "use response_format of the type json_schema", ({},)),
    RefusedFields("format", "use response_format", ("",)),
    RefusedFields("guided_whitespace_pattern structural_tag", "use structured_outputs: {grammar: …}"),
    RefusedFields("return_tokens_as_token_ids return_tokens", "use return_token_ids", (False,)),
    RefusedFields("extra_key", "use cache_salt", ("",)),
    RefusedFields("n_probs top_n_tokens", "use logprobs", (0,)),
    RefusedFields("input_ids", "use prompt with a list of token ids"),
    RefusedFields("inputs parameters text sampling_params options", "use the fields of this endpoint"),
    # What one endpoint has and the other does not.
    RefusedFields("prompt", "chat completions take messages; /v1/completions takes a prompt"),
    RefusedFields("suffix", "only completions have it; no model here fills a text in", ("",)),
    RefusedFields("messages", "completions take a prompt; /v1/chat/completions takes messages"),
    RefusedFields("max_completion_tokens", "completions take max_tokens"),
    RefusedFields("top_logprobs", "completions take logprobs: the number of alternatives", (0,)),
    RefusedFields("system instructions", "put it in front of the prompt, or in a message of the role system", ("",)),
    RefusedFields("tools functions documents", "only chat completions have it", ([],)),
    RefusedFields("tool_choice function_call", "only chat completions have it", ("none", "auto")),
    RefusedFields("chat_template chat_template_kwargs", "only chat completions have a template", ("", {})),
    RefusedFields("add_generation_prompt continue_final_message", "only chat completions have messages", (False,)),
    # Sampling.
    RefusedFields("use_beam_search early_stopping", "there is no beam search; n gives several answers", (False,)),
    RefusedFields("num_beams num_beam_groups", "there is no beam search; n gives several answers", (1, 0)),
    RefusedFields("do_sample", "temperature: 0 takes the likeliest token", (True,)),
    RefusedFields("typical_p typical tfs tfs_z", "filters are top_k, top_p and min_p", (1,)),
    RefusedFields("top_a epsilon_cutoff eta_cutoff top_n_sigma nsigma", "filters are top_k, top_p and min_p", (0, -1)),
    RefusedFields("xtc_probability", "filters are top_k, top_p and min_p", (0,)),
    RefusedFields("mirostat mirostat_mode", "temperature, top_k, top_p and min_p steer sampling", (0,)),
    RefusedFields("dynatemp_range smoothing_factor adaptive_target", "temperature is a number", (0,)),
    RefusedFields("temperature_last dynamic_temperature samplers sampler_order", "filters have one order", (False, [])),
    RefusedFields("dry_multiplier", "penalties are repetition, presence and frequency", (0,)),
    RefusedFields("no_repeat_ngram_size encoder_repetition_penalty", "penalties are of single tokens", (0, 1)),
    RefusedFields("repeat_last_n repetition_penalty_range", "penalties look at the whole text", (-1, 0)),
    RefusedFields("penalize_nl", "penalties treat all tokens alike", (False,)),
    RefusedFields("penalty_alpha", "there is no contrastive search", (0,)),
    RefusedFields("guidance_scale negative_prompt", "there is no guidance", (1, "")),
    RefusedFields(
        "logits_processors custom_logit_processor custom_params vllm_xargs", "nobody's code runs here", ([], {})
    ),
    RefusedFields("stop_regex repetition_detection", "stop takes strings", ("", [])),
    RefusedFields("thinking_token_budget reasoning_budget", _TEMPLATE, (-1,)),
    RefusedFields("reasoning_effort", _TEMPLATE, ("none",)),
    RefusedFields(
        "reasoning thinking enable_thinking thinking_forced_open reasoning_format", _TEMPLATE, (False, "none")
    ),
    RefusedFields("watermark", "texts are not marked", (False,)),
    # What is told besides the text.
    RefusedFields("return_hidden_states return_routed_experts return_logprob", _LOGPROBS, (False,)),
    RefusedFields("decoder_input_details details post_sampling_probs", _LOGPROBS, (False,)),
    RefusedFields("return_full_text", "echo: true puts the prompt in front", (False,)),
    RefusedFields("return_progress verbose", "/v1/requests tells what a request went through", (False,)),
    RefusedFields("response_fields", "answers have all their fields", ([],)),
    # Prompts.
    RefusedFields(
        "truncate truncation_side num_ctx", "use truncate_prompt_tokens, which keeps the end", ("left", "none")
    ),
    RefusedFields("n_keep n_discard n_indent context_shift", "a text ends where the context does", (0, False)),
    RefusedFields("transforms", "prompts are taken as they are", ([],)),
    RefusedFields("safe_prompt", "put it in a message of the role system", (False,)),
    RefusedFields("prompt_embeds input_embeds image_data multi_modal_data audio images", _TEXTS, ([],)),
    RefusedFields("mm_processor_kwargs media_io_kwargs images_config", _TEXTS, ({},)),
    RefusedFields("template raw context", "the model's template is used, or PRFAAS_CHAT_TEMPLATE", (False, "")),
    # What OpenAI does around a model.
    RefusedFields("modalities", "answers are text", (["text"],)),
    RefusedFields("verbosity", "say in the prompt how long the answer is to be", ("medium",)),
    RefusedFields("web_search_options moderation plugins", "there are no services around the model", ({}, [])),
    RefusedFields(
        "previous_response_id conversation session_id session_params", "send the whole conversation", ("", {})
    ),
    RefusedFields("background", "an answer comes on its request's connection", (False,)),
    RefusedFields("models route provider", "one model is served; model names it", ([], "")),
    # Adapters, and the insides of other servers.
    RefusedFields("lora lora_path adapter_id lora_request", "there are no adapters", ("", [])),
    RefusedFields("kv_transfer_params bootstrap_host bootstrap_port bootstrap_room", _DECIDED_HERE, ({},)),
    RefusedFields("data_parallel_rank routed_dp_rank disagg_prefill_dp_rank", _DECIDED_HERE),
    RefusedFields("t_max_predict_ms max_time", "use max_tokens; the header X-SLO-TTFT-MS asks for a latency", (0,)),
    RefusedFields("speculative", "tokens are not guessed ahead", ({}, False)),
)

REFUSED_INSIDE: tuple[RefusedFields, ...] = (
    RefusedFields("prefix", "a conversation ends with its last message", (False,)),
    RefusedFields("images audio videos", "messages are text", ([],)),
)
"""The same of messages and their parts."""


def _by_name(refusals: Iterable[RefusedFields]) -> dict[str, RefusedFields]:
    return {name: refusal for refusal in refusals for name in refusal.names.split()}


_OF_BODY, _INSIDE = _by_name(REFUSED), _by_name(REFUSED_INSIDE)


def is_known(path: str, value: Any) -> bool:
    """Return whether a field that a body, or an object in it, does not have may be there all the same.

    False: nobody knows it. Raises `BadRequest`, which says what to do, for one that asks for what is not done. A null
    asks for nothing.
    """
    _, is_inside, name = path.rpartition(".")
    if value is None or name in HARMLESS:
        return True
    refusal = (_INSIDE if is_inside else _OF_BODY).get(name)
    if refusal is None:
        return False
    if value not in refusal.neutral:
        raise BadRequest(f"{name} is not supported: {refusal.advice}", param=path)
    return True
