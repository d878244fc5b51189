"""The time of a step to expect: operations and bytes by what the device does of each in a second."""

from __future__ import annotations

from dataclasses import dataclass

from lingu_ray.config import Config
from lingu_ray.cost.devices import Device
from lingu_ray.cost.formulas import Pair, Passes, Sample, student_flops, teacher_flops
from lingu_ray.cost.memory import kv_of_rows, learned_here, patches_of_row, queries_of_row
from lingu_ray.cost.models import Models, active
from lingu_ray.cost.trace import Held, decoder_pass
from lingu_ray.cost.workload import Workload, sharing, travels_by

TRAFFIC = 8
"""Times that what a step keeps for its backward pass crosses memory: written, read, and the steps between that are not
kept. From a model of three decoders on an H100, not measured."""
UPDATE_BYTES = 28
"""Of a trained parameter in the optimizer's step: weight, gradient and moments read, weight and moments written."""
LAUNCH_SECONDS = 28e-6
"""Of a GPU's step, for an operation of the decoder, forward or backward, that the host has to launch: what steps of
SmolVLM-256M and Qwen2-VL-2B took on an H100 beyond the other terms was 33 and 22 µs."""
VIEW_SECONDS = 0.02
"""Of a processor, to cut, scale and normalize one view of a picture: Idefics3's image processor took 0.24 to 0.34 s for
pictures of 13 to 17 views."""
OBJECT_STORE = 2.7e9
"""KV a second from GPU to GPU by way of the object store: two pageable copies and one in host memory; assumed."""


@dataclass(frozen=True)
class StepTime:
    """Of a worker's step: seconds by what takes them, operations of each model, bytes of KV for its teacher.

    `pictures`: processor seconds that the step's pictures take in the threads that read ahead.
    """

    seconds: dict[str, float]
    flops: dict[str, float]
    kv: float
    pictures: float

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


def step_time(config: Config, models: Models, load: Workload, device: Device) -> StepTime:
    """A step of one worker on this device, which the others that share it slow down.

    Sums of gradients between nodes are left out (docs/scaling.md has them).
    """
    device = device.shared_by(sharing(config.ray, load.on_gpu, config.ray.min_workers))
    pair, patches = pair_of(models), patches_of_row(models, load)
    queries = queries_of_row(config, load)
    row = Sample(patches, load.tokens - load.answer_tokens, load.answer_tokens, load.distilled)
    asked = Sample(patches, load.tokens - queries, queries, load.distilled)
    rows, rate = load.rows_of_step, device.rate(load.bf16)
    kv = rows * load.distilled * kv_of_rows(config, models, load, 1) if models.teacher is not None else 0.0
    whole = config.train.packing and config.train.attention == "sdpa"  # it computes what the mask then hides
    packed = load.rows * load.tokens if whole else None
    flops = {"student": rows * student_flops(pair, row, flops_passes(config, models), packed)}
    if models.teacher is not None:
        flops["teacher"] = rows * teacher_flops(pair, asked)
    seconds = {name: number / rate for name, number in flops.items()} | {
        "memory": load.micro_batches * TRAFFIC * _kept(config, models, load) / device.bandwidth,
        "optimizer": UPDATE_BYTES * learned_here(config, models) / device.bandwidth,
    }
    if load.on_gpu:
        seconds["launches"] = LAUNCH_SECONDS * load.micro_batches * _launches(config, models, load)
    if kv and travels_by(config) == "object_store":
        seconds["KV"] = kv / (OBJECT_STORE if load.on_gpu else device.bandwidth / 2)
    views = rows * load.image_tokens / models.tower.tokens
    return StepTime(seconds, flops, kv, views * VIEW_SECONDS)


def pair_of(models: Models) -> Pair:
    """The pair as the formulas take it."""
    embeddings = models.student.output_head.weight_VD.numel()
    return Pair(
        decoder=active(models.student.decoder) - embeddings,
        tower=models.parameters["vision"],
        layers=models.text.num_hidden_layers,
        width=models.text.hidden_size,
        vocabulary=models.student.output_head.vocabulary,
        tower_attention=models.tower.attention_flops,
    )


def flops_passes(config: Config, models: Models) -> Passes:
    """Forward passes that decoder and tower are worth: two more backward, one where weights are frozen."""
    again = int(config.train.gradient_checkpointing)
    decoder = 3 if models.trained_layer_parameters >= models.layer_parameters / 2 else 2
    return Passes(decoder=decoder + again, tower=3 + again if models.trained["vision"] else 1)


def _pass(models: Models, load: Workload) -> Held:
    """The decoder's pass over a micro-batch, without gradient checkpointing."""
    return decoder_pass(models.student.decoder, load.rows, load.tokens, False, load.bf16, False)


def _kept(config: Config, models: Models, load: Workload) -> float:
    """What a micro-batch would keep without gradient checkpointing, a third more with it, which computes it again."""
    return _pass(models, load).kept * (4 / 3 if config.train.gradient_checkpointing else 1)


def _launches(config: Config, models: Models, load: Workload) -> float:
    """Operations of a micro-batch that one process launches: those of a teacher in an actor are launched meanwhile."""
    of_pass = _pass(models, load)
    again = of_pass.forward * config.train.gradient_checkpointing
    in_worker = models.teacher is not None and config.teacher.placement == "in_process"
    return of_pass.launches + again + of_pass.forward * in_worker
