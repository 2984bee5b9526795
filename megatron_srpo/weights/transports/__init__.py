"""Ways to bring assembled buckets to an engine: through the disk, shared memory or a collective."""
