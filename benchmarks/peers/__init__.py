"""Engines side by side: each a child process, maybe of another Python, that answers commands on a pipe."""
