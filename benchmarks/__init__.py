"""What lingu_ray costs, measured: `python -m benchmarks.NAME` gives JSON and a table of ratios."""
