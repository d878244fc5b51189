"""What came back: engines, tasks, metrics, the recovery summary, the report and the model card."""
