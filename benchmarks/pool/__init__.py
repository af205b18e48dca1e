"""How fast a pool gives and takes, beside a bare gRPC stream and beside two peers."""
