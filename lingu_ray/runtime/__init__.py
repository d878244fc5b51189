"""The runtime: Ray Train workers, co-located teacher actors, checkpoints, tracking and progress.

trainer     the driver's side of a run          folder      what lies where in a run's folder
worker      the loop every worker executes      step        one optimizer step
teachers    the teacher, in an actor or here    distributed what workers tell each other
optimizer   groups, schedules                   checkpoint  written whole or not at all
validation  by source, and sample answers       export      the finished model
metrics     metrics.jsonl                       progress    the live line
tracking    MLflow                              cluster     connecting to Ray
models      the settings' models, loaded
"""
