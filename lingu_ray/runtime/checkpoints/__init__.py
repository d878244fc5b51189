"""Checkpoints: what a run resumes from."""
