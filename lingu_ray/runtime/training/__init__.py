"""The training loop of Ray Train's workers, and what a step is made of."""
