"""Where a run computes: connecting to Ray, what the cluster has room for, GPUs and cores, nodes that go."""
