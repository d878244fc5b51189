"""Sweeps over distillation's settings: which of them bring language back without costing vision."""

import lingu_ray  # noqa: F401 (first of all, for Ctrl-C while modules are imported)
