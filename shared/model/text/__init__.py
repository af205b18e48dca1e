"""Tokeniser, what it keeps of texts, chat template. No torch."""
