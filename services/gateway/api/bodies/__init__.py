"""The request bodies of the HTTP API, typed: what is not implemented is refused by name, never silently ignored."""
