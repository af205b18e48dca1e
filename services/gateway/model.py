"""The model as the gateway serves it: tokeniser, limits, and the identity that workers must share. No weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from services.gateway.defaults import NO_DEFAULTS, GenerationDefaults
from services.gateway.settings import GatewaySettings
from shared.errors import ModelNotFound, SettingsError
from shared.ids import BlockKey, ModelFingerprint
from shared.kv.codec import Fidelity
from shared.kv.hashing import chain_keys, root_key
from shared.kv.layout import KvLayout
from shared.model.files.catalog import resolve
from shared.model.text.cached import CachedTokenizer
from shared.model.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """Immutable but for what `texts` remembers; safe to use from several threads."""

    name: str
    tokenizer: Tokenizer
    layout: KvLayout
    fingerprint: ModelFingerprint
    vocab_size: int  # rows of the embedding: token ids are below it
    max_model_len: int  # tokens of prompt and completion together
    aliases: tuple[str, ...] = ()
    text_cache_bytes: int = 0  # for the ids of texts that may come again
    defaults: GenerationDefaults = NO_DEFAULTS
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that end a generation and are not part of its text."""
        return frozenset(self.tokenizer.eos_ids)

    @cached_property
    def texts(self) -> CachedTokenizer:
        """The tokeniser with what it remembers of prompts."""
        return CachedTokenizer(self.tokenizer, self.text_cache_bytes)

    def check_name(self, name: str | None) -> None:
        """Raise `ModelNotFound` unless a request that names `name` means this model."""
        if name is not None and name != self.name and name not in self.aliases:
            raise ModelNotFound(f"the model {name!r} does not exist; this server serves {self.name!r}", param="model")

    def prefix_keys(
        self, token_ids: Sequence[int], salt: str, fidelity: Fidelity = Fidelity.LOSSLESS
    ) -> list[BlockKey]:
        """Return the keys of the blocks of a prompt that may come from a cache: all full ones."""
        root = root_key(self.fingerprint, self.layout.hash, salt, fidelity)
        return chain_keys(root, token_ids, self.layout.block_tokens)


def load_model(settings: GatewaySettings) -> ServedModel:
    """Prepare and read the model's files. Takes seconds at a model's first start: not for the event loop.

    Raises `ModelFileError`, and `SettingsError` for a context longer than the model's own, and for
    defaults that are not there.
    """
    files = resolve(settings.model, settings.cache_dir.expanduser())
    config = files.config()
    if settings.max_model_len > config.max_context:
        raise SettingsError(
            f"PRFAAS_MAX_MODEL_LEN: {settings.max_model_len} exceeds the model's context of {config.max_context} tokens"
        )
    return ServedModel(
        name=files.name,
        tokenizer=Tokenizer.load(files.path, settings.chat_template or None),
        layout=config.kv_layout(settings.block_tokens, settings.dtype),
        fingerprint=files.fingerprint,
        vocab_size=config.vocab_size,
        max_model_len=settings.max_model_len or config.max_context,
        aliases=(settings.model,),
        text_cache_bytes=settings.text_cache_bytes,
        defaults=GenerationDefaults.of(settings.generation_config, files.path),
    )
