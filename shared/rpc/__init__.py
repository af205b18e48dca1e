"""gRPC servers and clients with one set of options, one error mapping and request ids on every call."""
