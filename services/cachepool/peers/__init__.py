"""Pulling blocks from other pools."""
