"""Metrics: from a model's kept answers to scores; no model is needed, and tasks are not known here."""
