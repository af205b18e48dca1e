"""Tokeniser and chat template. No torch."""
