"""Which pool holds which blocks: the index that prefix matching asks."""
