"""The model families that the decoder computes. One is added by a module here and its name in `ALL`."""

from shared.model.files.families.family import Family
from shared.model.files.families.gemma3 import GEMMA3
from shared.model.files.families.llama import LLAMA
from shared.model.files.families.mistral import MISTRAL
from shared.model.files.families.qwen2 import QWEN2
from shared.model.files.families.qwen3 import QWEN3

ALL: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA3,
)

BY_MODEL_TYPE = {family.model_type: family for family in ALL}
BY_GGUF_ARCHITECTURE = {family.gguf.architecture: family for family in ALL if family.gguf is not None}
