"""The runtime: Ray Train workers, co-located teacher actors, checkpoints, tracking and progress.

trainer     the driver's side of a run          folder      what lies where in a run's folder
worker      the loop every worker executes      step        one optimizer step
teachers    the teacher, in an actor or here    distributed what workers tell each other
optimizer   groups, schedules                   checkpoint  what a run resumes from
validation  by source, and sample answers       export      the finished model
records     metrics.jsonl and samples.jsonl     progress    the live line
tracking    MLflow                              cluster     connecting to Ray
models      the settings' models, loaded
sharding    FSDP2                               prepare     a student made ready to train
resume      what may continue a run             environment versions, commit, hardware
gpus        GPUs tried, and hidden              memory      a GPU that is full, in one line
metrics     Ray's metrics, for Prometheus       run_log     logs as JSON lines
doctor      a cluster checked before a run
"""
