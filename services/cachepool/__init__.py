"""The pool of KV blocks of one datacenter: stored once, streamed while being written, pulled from peers once."""
