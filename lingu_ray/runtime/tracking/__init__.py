"""What others see of a run: MLflow and other trackers, Ray's metrics, the live line, the environment."""
