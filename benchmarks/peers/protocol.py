"""The child's side: read a command, do it, answer with one line of JSON. Standard library only: Pythons differ.

    {"do": "prefill", "tokens": 512}                              one prompt nobody has seen, to its first token
    {"do": "decode", "batch": 8, "context": 512, "steps": 32}     so many prompts, then so many tokens of each

Answers are `{"seconds": x}`: of the whole prompt, and the median of the steps. Before the first command the child says
`{"ready": {...}}` with whatever a reader of the figures should know. An error is `{"error": text}`.
"""

import ctypes
import json
import os
import random
import signal
import statistics
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

FIRST_ID, END_ID = 1_000, 40_000  # ordinary tokens in the vocabularies of both models

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Engine(Protocol):
    """What a contestant can do. Times are of one attempt: the parent repeats."""

    def about(self) -> dict[str, Any]:
        """Return versions and settings that explain the figures."""
        ...

    def prefill(self, prompt: list[int]) -> float:
        """Return seconds from handing over the prompt to its first token."""
        ...

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Return seconds of each step in which every prompt got one more token, sampling (greedy) included."""
        ...


class Prompts:
    """Random token ids; no two prompts share a prefix."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self, num_tokens: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, END_ID) for _ in range(num_tokens)]

    def between(self, shortest: int, longest: int) -> list[int]:
        return self.draw(self._random.randint(shortest, longest))

    def several(self, count: int, num_tokens: int) -> list[list[int]]:
        return [self.draw(num_tokens) for _ in range(count)]


def serve(load: Callable[[], Engine]) -> None:
    """Answer commands until the parent closes our input. Whatever libraries print goes to standard error."""
    # A child that stands still could not see that its parent was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = load()
    prompts = Prompts(0)
    print(json.dumps({"ready": engine.about()}), file=answers)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"seconds": _done(engine, prompts, json.loads(line))}
        except Exception as error:  # noqa: BLE001 - the parent is told, and decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def _done(engine: Engine, prompts: Prompts, command: dict[str, Any]) -> float:
    if command["do"] == "prefill":
        return engine.prefill(prompts.draw(command["tokens"]))
    if command["do"] == "decode":
        drawn = prompts.several(command["batch"], command["context"])
        return statistics.median(engine.decode(drawn, command["steps"]))
    raise ValueError(f"unknown command {command['do']!r}")
