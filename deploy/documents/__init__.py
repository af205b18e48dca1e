"""Checks of the documentation: `python -m deploy.documents`."""
