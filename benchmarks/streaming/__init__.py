"""Time to the first token over a WAN: streamed layer by layer, against store and forward."""
