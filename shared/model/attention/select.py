"""Which attention a device and dtype get."""

from importlib.util import find_spec
from typing import Literal

import torch

from shared.model.attention.base import Attention
from shared.model.attention.sdpa import SdpaAttention

AttentionName = Literal["auto", "sdpa", "flash"]


def select_attention(
    name: AttentionName, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Attention:
    """Return the attention to use: `auto` is flash-attn where it is installed and suits GPU and dtype, else SDPA.

    Of flash-attn's generations the newest that the GPU runs. Raises `SettingsError` when `flash` is not to be had.
    """
    device = torch.device(device)
    suits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if name == "sdpa" or (name == "auto" and not suits):
        return SdpaAttention()
    if find_spec("flash_attn_interface") is not None and _is_hopper(device):
        from shared.model.attention.flash3 import FlashAttention3  # deferred, as below

        return FlashAttention3()
    if name == "flash" or find_spec("flash_attn") is not None:
        from shared.model.attention.flash2 import FlashAttention  # deferred: needs a package that CPUs do without

        return FlashAttention()
    return SdpaAttention()


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
