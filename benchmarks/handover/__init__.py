"""The account of the hand-over: what each hop of KV costs, from an engine's pages to another engine's pages."""
