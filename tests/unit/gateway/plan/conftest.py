"""A file that is right, to be spoilt."""

from collections.abc import Callable
from pathlib import Path

import pytest

RIGHT = """
[lengths]
kind = "list"
tokens = [100, 200, 300, 600]
[requests]
output_tokens = 10
[slo]
time_per_output_token_s = 0.5
[model.kv_bytes]
coefficients = [0, 1_000_000]
[hardware.fast.prefill_s]
coefficients = [0, 0, 1]
unit_tokens = 100
[hardware.slow]
prefill_s = { like = "fast", scale = 3 }
decode = { batch = [2, 9], step_s = [0.5, 0.7] }
[prfaas]
hardware = "fast"
instances = 9
[pd]
hardware = "slow"
instances = 4
[link]
capacity_gbit_s = 8
[search]
step_tokens = 100
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the right file with some passages replaced; each must be there."""

    def write(*changes: tuple[str, str], then: str = "") -> Path:
        text = RIGHT
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / "case.toml"
        path.write_text(text + then)
        return path

    return write
