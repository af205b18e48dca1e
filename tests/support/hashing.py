"""A model that notes where a prompt's keys are computed, and a call without a deadline, for servicers."""

import threading
from collections.abc import Sequence

from shared.engine.loaded import LoadedModel
from shared.engine.thread import LONG_PROMPT_TOKENS
from shared.ids import BlockKey
from shared.kv.codec import Fidelity
from tests.support.tiny import tiny_model


class HashingModel(LoadedModel):
    """A tiny model with room for long prompts."""

    threads: list[threading.Thread]  # in which keys were computed

    def keys(self, token_ids: Sequence[int], salt: str, fidelity: Fidelity = Fidelity.LOSSLESS) -> list[BlockKey]:
        self.threads.append(threading.current_thread())
        return super().keys(token_ids, salt, fidelity)


def hashing_model() -> HashingModel:
    model = HashingModel(**{**vars(tiny_model("llama")), "max_model_len": 2 * LONG_PROMPT_TOKENS})
    object.__setattr__(model, "threads", [])  # the class is frozen
    return model


class EndlessCall:
    """What a servicer asks of the context of a call that has no deadline."""

    def time_remaining(self) -> float | None:
        return None
