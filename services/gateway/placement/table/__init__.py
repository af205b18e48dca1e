"""The hash table under the index: keys of blocks to who holds them."""
