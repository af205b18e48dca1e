"""What payloads travel on beside gRPC: shared memory on one host, sockets between hosts."""
