"""What the pipeline is asked for: one request for each choice, with the keys of its blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.gateway.model import ServedModel
from services.gateway.request.text import TextRules
from services.gateway.routing.plan import NO_SLO, Slo
from services.gateway.syntax.parts import AnswerForm
from shared.ids import BlockKey
from shared.kv.codec import Fidelity
from shared.sampling.logprobs import PromptScoring
from shared.sampling.params import SamplingParams
from shared.tenant import Tenant, tenant_of


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for the pipeline."""

    token_ids: Sequence[int]
    keys: Sequence[BlockKey]  # of the prefix blocks
    sampling: SamplingParams
    salt: str
    priority: int = 0  # lower goes first
    num_generated: int = 0  # the last so many of `token_ids` are the answer's: a worker was lost after them
    fidelity: Fidelity = Fidelity.LOSSLESS  # the chain that `keys` are of
    lossless_keys: Sequence[BlockKey] = ()  # of the same blocks; only where loss is allowed
    slo: Slo = NO_SLO
    account: Tenant | None = None  # that was found by a key; None: nobody has one here
    scoring: PromptScoring | None = None  # what is to be told of the prompt's own tokens

    @property
    def tenant(self) -> Tenant:
        """On whose account blocks are stored and turns are taken."""
        return tenant_of(self.salt) if self.account is None else self.account

    def num_unscored(self, num_told: int) -> int:
        """Return of how many tokens of the prompt something is still to be told."""
        if self.scoring is None:
            return 0
        return len(self.token_ids) - self.num_generated - self.scoring.first - num_told

    def reusable_keys(self, block_tokens: int) -> Sequence[BlockKey]:
        """Return the keys of the blocks that caches may provide: KV tells nothing of what follows a token."""
        return self.keys if self.scoring is None else self.keys[: (self.scoring.first - 1) // block_tokens]


class Echo(NamedTuple):
    """A prompt's text that begins the answer."""

    text: str
    offsets: Sequence[int] = ()  # where each of its tokens begins, if log-probabilities of them are shown


NO_ECHO = Echo("")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated body: one request for each choice, those of one prompt together."""

    requests: tuple[GenerationRequest, ...]
    rules: TextRules
    num_choices: int  # of each prompt
    echoes: tuple[Echo, ...] = ()  # of each prompt, if they are to begin the answer
    num_shown: int | None = None  # of the choices of each prompt, the likeliest; None: all, as they are numbered
    form: AnswerForm | None = None  # None: answers are content and nothing else
    constraint_field: str | None = None  # that constrains the answer, where it is none of the usual ones

    def asking(self, slo: Slo) -> "Prepared":
        """Return the same with a latency that each choice is to have."""
        if slo == NO_SLO:
            return self
        return replace(self, requests=tuple(replace(request, slo=slo) for request in self.requests))

    def on_account(self, tenant: Tenant) -> "Prepared":
        """Return the same on the account of a tenant."""
        return replace(self, requests=tuple(replace(request, account=tenant) for request in self.requests))

    @property
    def prompts(self) -> tuple[GenerationRequest, ...]:
        """The first choice of each prompt."""
        return self.requests[:: self.num_choices]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.token_ids) for request in self.prompts)


def with_keys(model: ServedModel, request: GenerationRequest, fidelity: Fidelity) -> GenerationRequest:
    """Return the request with the keys of its tokens in the chain of `fidelity`, and in the lossless one."""
    keys = model.prefix_keys(request.token_ids, request.salt, fidelity)
    exact = () if fidelity is Fidelity.LOSSLESS else model.prefix_keys(request.token_ids, request.salt)
    return replace(request, keys=keys, fidelity=fidelity, lossless_keys=exact)
