"""What a decoder layer is made of: batches, weights, operations."""
