"""Tasks: where items come from, and what each asks of a model."""
