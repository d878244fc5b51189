"""The alignment of a run's initial model (`align`), before training."""
