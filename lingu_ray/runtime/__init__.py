"""The runtime: Ray Train workers, co-located teacher actors, checkpoints, tracking and progress.

run          one run on the driver's side       trainer    runs trained, one or several side by side
controls     runs beside it, without teacher    ray_train  what Ray Train is started with
resume       what may continue a run            rehearsal  what could fail late, tried before the start
preparation  folders, tasks, initial model      failures   workers that fail, as people read it

training     the loop of the workers, a step    teacher      in an actor or here, and KV's way to it
checkpoints  what a run resumes from            models       loaded, checked, exported
alignment    a new VLM's first stage            run_folder   what lies where, on disk or in a bucket
cluster      Ray, its room, GPUs and cores      tracking     MLflow, other trackers, the live line
doctor       a cluster checked before a run
"""

import os

from lingu_ray.starting import collect_less

collect_less()  # in Ray's processes as in commands, before torch is imported

# In 16 bits torch takes cuDNN's attention first on Hopper and Blackwell. For each new shape, and nearly every
# micro-batch has one, it plans for hundredths of a second up to a whole one, and it keeps every plan.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
