"""A wide area network on one machine: network namespaces joined by a relay with delay, rate and loss. Linux, root."""
