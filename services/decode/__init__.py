"""The decode service: generates tokens over KV that is still arriving, in one running batch."""
