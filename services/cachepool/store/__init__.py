"""The pool's memory: blocks, readers, writers, eviction, pins. No I/O."""
