"""One step: what it is made of, how long it may be, and who runs it, in its turn or ahead of it."""
