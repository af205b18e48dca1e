"""How tokens are to be sampled and what is told of them: wire messages to the suite's own types and back."""

from collections.abc import Iterable, Sequence

from shared.errors import BadRequest, Internal
from shared.proto import prfaas_pb2 as pb
from shared.sampling.constraint import Constraint, ConstraintKind
from shared.sampling.logprobs import MAX_LOGPROBS, PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams

_KINDS = {
    ConstraintKind.JSON_SCHEMA: pb.CONSTRAINT_KIND_JSON_SCHEMA,
    ConstraintKind.REGEX: pb.CONSTRAINT_KIND_REGEX,
    ConstraintKind.CHOICE: pb.CONSTRAINT_KIND_CHOICE,
    ConstraintKind.GRAMMAR: pb.CONSTRAINT_KIND_GRAMMAR,
}
_KIND_OF_NUMBER = {int(number): kind for kind, number in _KINDS.items()}


def sampling_to_message(params: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias),
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        num_logprobs=params.num_logprobs,
        constraint=None if params.constraint is None else _constraint_to_message(params.constraint),
    )


def sampling_from_message(message: pb.Sampling) -> SamplingParams:
    """Raises `BadRequest` (from `SamplingParams`) when a field is out of range."""
    return SamplingParams(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty or 1.0,
        logit_bias=tuple(sorted(message.logit_bias.items())),  # a map has no order of its own
        seed=message.seed,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        constraint=_constraint_from_message(message.constraint) if message.HasField("constraint") else None,
    )


def _constraint_to_message(constraint: Constraint) -> pb.Constraint:
    return pb.Constraint(kind=_KINDS[constraint.kind], text=constraint.text)


def _constraint_from_message(message: pb.Constraint) -> Constraint:
    """Raises `BadRequest` for a kind that this process does not know: an answer without it would be wrong."""
    kind = _KIND_OF_NUMBER.get(message.kind)
    if kind is None:
        raise BadRequest(f"constraints of kind {message.kind} are not known here")
    return Constraint(kind, message.text)


def logprobs_to_messages(logprobs: Iterable[TokenLogprobs]) -> list[pb.TokenLogprobs]:
    return [
        pb.TokenLogprobs(
            logprob=logprob, top_ids=[i for i, _ in top], top_logprobs=[value for _, value in top], rank=rank
        )
        for logprob, top, rank in logprobs
    ]


def scoring_to_message(scoring: PromptScoring | None) -> pb.PromptScoring | None:
    return None if scoring is None else pb.PromptScoring(first=scoring.first, num_top=scoring.num_top)


def scoring_from_message(request: pb.GenerateRequest) -> PromptScoring | None:
    """Raises `BadRequest` when it names tokens that are not the prompt's, or too many alternatives."""
    if not request.HasField("scoring"):
        return None
    scoring = PromptScoring(request.scoring.first, request.scoring.num_top)
    num_prompt_tokens = len(request.token_ids) - request.num_generated
    if not 1 <= scoring.first <= num_prompt_tokens:
        raise BadRequest(f"scoring begins at token {scoring.first} of a prompt of {num_prompt_tokens}")
    if scoring.num_top > MAX_LOGPROBS:
        raise BadRequest(f"scoring asks for {scoring.num_top} alternatives; at most {MAX_LOGPROBS} are told")
    return scoring


def logprobs_from_message(message: pb.Tokens) -> tuple[TokenLogprobs, ...]:
    """Return one entry for each id, or none at all. Raises `Internal` when what a worker sent is not parallel."""
    if not message.logprobs:
        return ()
    if len(message.logprobs) != len(message.ids):
        raise Internal(f"a worker sent {len(message.logprobs)} log-probabilities for {len(message.ids)} tokens")
    return _logprobs(message.logprobs)


def prompt_logprobs_from_message(message: pb.Tokens) -> tuple[TokenLogprobs, ...]:
    """Return what is told of the prompt's next tokens. Raises `Internal` when it contradicts itself."""
    return _logprobs(message.prompt_logprobs) if message.prompt_logprobs else ()


def _logprobs(messages: Sequence[pb.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    if any(len(m.top_ids) != len(m.top_logprobs) for m in messages):
        raise Internal("a worker sent alternatives that are not parallel to their log-probabilities")
    return tuple(TokenLogprobs(m.logprob, tuple(zip(m.top_ids, m.top_logprobs, strict=True)), m.rank) for m in messages)
