"""How the threads of one process take turns with Python's interpreter."""

import sys

SWITCH_S = 0.0005


def take_turns_often() -> None:
    """Let a thread that has waited for the interpreter for `SWITCH_S` have it next, not only after ten times as long.

    Threads that move payloads need the interpreter for microseconds between two system calls. While the event loop is
    busy, each of these would cost them 5 ms by default: more than a MiB takes on its way.
    """
    sys.setswitchinterval(SWITCH_S)
