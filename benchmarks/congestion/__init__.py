"""A link that falls to a tenth and comes back, under a steady load: how soon routing moves, and who waits for it."""
