"""A model made ready to compute: files found, weights mapped, pages allocated, sizes checked."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import torch

from shared.engine.settings import EngineSettings
from shared.errors import BadRequest, ContextTooLong, ModelMismatch, SettingsError
from shared.ids import BlockKey
from shared.kv.codec import Fidelity
from shared.kv.hashing import chain_keys, root_key
from shared.kv.layout import KvLayout
from shared.log import get_logger
from shared.model.attention.select import select_attention
from shared.model.files.catalog import ModelFiles, ensure_weights, resolve
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Batch, Span
from shared.model.native.build import load_library
from shared.model.pages.groups import PageGroups
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from shared.native import KernelsUnavailable

log = get_logger()


@dataclass(frozen=True)
class LoadedModel:
    """What an engine computes with."""

    files: ModelFiles
    config: ModelConfig
    layout: KvLayout
    transformer: Transformer
    kv: PagedKv
    max_model_len: int

    def check(self, fingerprint: str, layout_hash: str, token_ids: Sequence[int]) -> None:
        """Refuse a request for another model, with unknown tokens, or longer than the context.

        Raises `ModelMismatch`, `BadRequest`, `ContextTooLong`.
        """
        if fingerprint != self.files.fingerprint or layout_hash != self.layout.hash:
            raise ModelMismatch(f"this worker serves {self.files.name} with another fingerprint or KV layout")
        if not token_ids:
            raise BadRequest("the prompt is empty")
        if max(token_ids) >= self.config.vocab_size:
            raise BadRequest(f"token id {max(token_ids)} is not in the vocabulary of {self.config.vocab_size}")
        if len(token_ids) > self.max_model_len:
            raise ContextTooLong(f"the prompt has {len(token_ids)} tokens, the context {self.max_model_len}")

    def root(self, salt: str, fidelity: Fidelity = Fidelity.LOSSLESS) -> BlockKey:
        """Return where the chains of this model, layout, tenant and fidelity start."""
        return root_key(self.files.fingerprint, self.layout.hash, salt, fidelity)

    def keys(self, token_ids: Sequence[int], salt: str, fidelity: Fidelity = Fidelity.LOSSLESS) -> list[BlockKey]:
        """Return the keys of all full blocks of `token_ids`."""
        return chain_keys(self.root(salt, fidelity), token_ids, self.layout.block_tokens)


def load_model(settings: EngineSettings) -> LoadedModel:
    """Load what `settings` name; blocks for seconds, so call it in a thread.

    Raises `ModelFileError`, and `SettingsError` when the KV memory cannot hold one whole context.
    """
    files = resolve(settings.model, settings.cache_dir.expanduser())
    config = files.config()
    layout = config.kv_layout(settings.block_tokens, settings.dtype)
    device = torch.device(settings.device)
    attention = select_attention(settings.attention, device, getattr(torch, settings.dtype))
    page_tokens = lcm(settings.block_tokens, attention.page_tokens)
    max_model_len = min(settings.max_model_len or config.max_context, config.max_context)
    groups, stride = PageGroups.of(layout), settings.stride_tokens
    page_bytes = groups.page_bytes(layout, page_tokens)
    num_pages = settings.kv_bytes // page_bytes
    needed = groups.pages_needed(max_model_len, stride, page_tokens)
    if num_pages < needed:
        raise SettingsError(
            f"PRFAAS_KV_BYTES: {settings.kv_bytes} bytes hold {groups.capacity_tokens(num_pages, stride, page_tokens)} "
            f"tokens of KV, less than one context of {max_model_len}; "
            f"set it to at least {needed * page_bytes}, or lower PRFAAS_MAX_MODEL_LEN"
        )
    transformer = Transformer.load(
        config,
        ensure_weights(files, settings.dtype),
        settings.dtype,
        device,
        attention,
        _kernels(settings, device),
        ensure_weights(files, "int8") if settings.weight_dtype == "int8" else None,
    )
    if settings.weight_dtype == "int8" and not transformer.uses_kernels:
        raise SettingsError("PRFAAS_WEIGHT_DTYPE: int8 needs the native CPU kernels, which cannot run this model here")
    kv = PagedKv(layout, num_pages, page_tokens, device)
    if device.type == "cuda":
        _warm_up(transformer, kv)
    return LoadedModel(files, config, layout, transformer, kv, max_model_len)


def _warm_up(transformer: Transformer, kv: PagedKv) -> None:
    """Compute a block of nothing: kernels are compiled and libraries loaded at their first call, not at a request's."""
    reservation = kv.reserve([], kv.layout.block_tokens)
    assert reservation is not None, "an empty cache has room for a block"
    batch = Batch.build([Span(reservation.tables, 0, kv.layout.block_tokens)], kv.page_tokens, transformer.device)
    ids = torch.zeros(batch.num_tokens, dtype=torch.int64, device=transformer.device)
    transformer.logits(transformer.forward(ids, batch, kv)[-1:])
    transformer.wait()
    kv.release(reservation)


def _kernels(settings: EngineSettings, device: torch.device) -> ctypes.CDLL | None:
    if settings.kernels == "torch" or device.type != "cpu":
        return None
    try:
        return load_library(settings.cache_dir.expanduser())
    except KernelsUnavailable as error:
        if settings.kernels == "native":
            raise SettingsError(f"PRFAAS_KERNELS: {error}") from error
        log.warning("native_kernels_unavailable", reason=str(error), consequence="decoding is several times slower")
        return None
