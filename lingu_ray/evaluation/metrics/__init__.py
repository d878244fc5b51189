"""Metrics: from the kept answers of a task's items to scores, without a model."""
