"""Measuring models: tasks, engines, metrics, and how much language came back and vision was kept."""
