"""A long fat pipe: how much of a link one pull between two pools uses, without and with loss."""
