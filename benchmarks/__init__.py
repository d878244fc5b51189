"""Measurements of lingu_ray's speed and memory: `python -m benchmarks.NAME` prints JSON and a table."""
