"""Checks of a machine or a cluster before a run: what each node is like, and what that means for the run."""
