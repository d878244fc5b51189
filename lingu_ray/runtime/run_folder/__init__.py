"""A run's folder: what lies where, who writes it, its records and logs, and a folder in a bucket."""
