"""Sweeps over distillation's settings: which of them bring language back without costing vision."""
