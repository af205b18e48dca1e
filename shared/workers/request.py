"""What both engines are told of a prompt, in the suite's own types."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.ids import LayoutHash, ModelFingerprint
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source
from shared.sampling.logprobs import PromptScoring
from shared.sampling.params import SamplingParams
from shared.tenant import Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOrder:
    """A prompt whose blocks are to be made, or used, by one worker."""

    token_ids: Sequence[int]
    num_blocks: int  # leading blocks that caches have or prefill makes
    fingerprint: ModelFingerprint
    layout_hash: LayoutHash
    salt: str
    tenant: Tenant  # pays for what pools store
    sources: Sequence[Source]  # where the worker's own pool pulls absent blocks from
    codec: Codec  # of the blocks that the worker publishes
    fidelity: Fidelity  # of blocks that may be used
    pool_nodes: Sequence[str]  # of the worker's datacenter; none: as the worker is configured
    priority: int = 0  # lower goes first


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOrder:
    """A prompt to be continued."""

    prompt: PromptOrder
    sampling: SamplingParams
    wait_ms: int  # for a block without a writer
    num_generated: int = 0  # the last so many of the prompt's `token_ids` are the answer's
    patience_s: float | None = None  # blocks that have not come by then are computed; None: as `wait_ms` says
    scoring: PromptScoring | None = None  # what is to be told of the prompt's own tokens
