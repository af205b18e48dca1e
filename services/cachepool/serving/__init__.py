"""The pool's gRPC service: publish, fetch, lookup, pins."""
