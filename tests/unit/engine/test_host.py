from collections.abc import Sequence

import pytest
import torch

from shared.engine.host import use_device


@pytest.mark.parametrize(("name", "chosen"), [("cpu", []), ("cuda", []), ("cuda:1", [torch.device("cuda:1")])])
def test_a_thread_uses_the_gpu_that_is_named(
    name: str, chosen: Sequence[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    use_device(name)
    assert told == list(chosen)
