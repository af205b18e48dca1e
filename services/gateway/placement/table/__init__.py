"""The hash table under the index: keys of blocks to who holds them.

    key --> bucket: 8 tags, 8 keys, 8 pairs --> pair: owner and state --> Owners.holder_of[owner] --> holder

The index uses `pairs.OwnedPairs` by three calls: `find` who holds blocks, `change` what is held, and `take_room` when
`room_wanted` asks for a larger table. Its `owners` are made, given to a holder and dropped, each at once.
"""
