"""What a gateway spends on a request: its own processor time, the workers and the client in other processes."""
