"""What the processes of `make up` inherit."""

import os
import sys
from pathlib import Path

from deploy.up.environment import environment


def test_the_callers_environment_wins_over_the_defaults() -> None:
    env = environment({"PATH": "/bin", "PRFAAS_DRAIN_S": "1", "PRFAAS_MODEL": "m"})
    assert env["PRFAAS_DRAIN_S"] == "1"
    assert env["PRFAAS_MODEL"] == "m"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["TOKENIZERS_PARALLELISM"] == "false"
