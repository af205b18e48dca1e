"""The tier behind a pool's memory: blocks as objects in a folder or a bucket. `tier.ObjectTier` is the way in."""
