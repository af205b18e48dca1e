"""Constrained decoding: what an answer has to be, as masks over the vocabulary; no torch."""
