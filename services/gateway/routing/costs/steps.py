"""What prompts take on workers, by the workers' own measurements: a value a row of `WORKER`."""

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows

Seconds = NDArray[np.float64]
Tokens = NDArray[np.float64]


def prefill_s(rows: Rows, first: Tokens, end: float | Tokens) -> Seconds:
    """Return the model time of a prompt's tokens `[first, end)` on prefill workers; `first` is a value a row.

    Of one worker, `first` and `end` may be those of several prompts.
    """
    num_steps = np.ceil(np.maximum(end - first, 0.0) / rows["step_tokens"])
    return np.asarray(rows["base_s"] * num_steps + prompt_only_s(rows, first, end))


def tail_s(rows: Rows, first: float | Tokens, end: float) -> Seconds:
    """Return the same on decode workers, where each step also gives the running requests their tokens."""
    num_steps = np.ceil((end - first) / rows["step_tokens"])
    return np.asarray(step_s(rows) * num_steps + prompt_only_s(rows, first, end))


def prompt_only_s(rows: Rows, first: float | Tokens, end: float | Tokens) -> Seconds:
    """Return what a prompt's tokens add to the steps of their worker: what running requests wait for them."""
    num_tokens = np.maximum(end - first, 0.0)
    pairs = num_tokens * (first + end + 1) / 2  # as `step_profile.num_pairs` has it
    return np.asarray(rows["token_s"] * num_tokens + rows["pair_s"] * pairs)


def step_s(rows: Rows, more_rows: int = 0, more_context: float = 0.0) -> Seconds:
    """Return the time of a step without prompts, with so many requests more."""
    running = rows["row_s"] * (rows["running"] + more_rows)
    return np.asarray(rows["base_s"] + running + rows["context_s"] * (rows["context_tokens"] + more_context))


def longest_step_s(rows: Rows) -> Seconds:
    """Return the time of a decode worker's step that is full of prompts."""
    return np.asarray(step_s(rows) + rows["token_s"] * rows["step_tokens"])


def step_in_hand_s(rows: Rows) -> Seconds:
    """Return when decode workers look at new requests: between steps, the longest of which is full of prompts."""
    return np.asarray(np.minimum(rows["queued_s"], longest_step_s(rows)))


def admission_s(rows: Rows, num_tokens: float) -> Seconds:
    """Return when a request is admitted on decode workers: when it has a place in the batch, and KV memory.

    Requests end evenly, each after as many steps as answers have tokens; what runs now is half through on average.
    """
    answer_s = rows["answer_tokens"] * step_s(rows)
    before = np.maximum(rows["requests"] + 1 - rows["max_batch"], 0.0)
    lacking = np.maximum(num_tokens - rows["free_tokens"], 0.0)
    memory_s = np.minimum(lacking / np.maximum(rows["context_tokens"], 1.0), 1.0) * answer_s / 2
    return np.asarray(np.maximum(before / rows["max_batch"] * answer_s, memory_s))


def turn_s(rows: Rows, first: float | Tokens, end: float, block_tokens: int) -> Seconds:
    """Return when decode workers begin with a prompt's tokens `[first, end)` that they have admitted.

    Whole prompts have their turns in order; what is left of one that has its KV from elsewhere goes into the next step.
    """
    return np.where(end - np.asarray(first) <= block_tokens, step_in_hand_s(rows), rows["queued_s"])
