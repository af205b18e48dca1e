"""Kafka: what many must know. Versioned events, and a producer and a consumer that outlive any broker."""
