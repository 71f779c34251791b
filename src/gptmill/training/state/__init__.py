"""The saved state of a training: one file, or one and a shard per rank."""
