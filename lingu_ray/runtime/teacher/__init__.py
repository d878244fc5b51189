"""The teacher of a worker, and how KV reaches it."""
