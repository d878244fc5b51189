"""The expected time of a step: its operations and bytes, divided by what the device does in a second."""

from __future__ import annotations

from dataclasses import dataclass

from lingu_ray.cost.devices import Device
from lingu_ray.cost.formulas import Pair, Passes, Sample, student_flops, teacher_flops
from lingu_ray.cost.memory import Run, held_in_bf16, kv_of_rows, patches_of_row, queries_of_row, updated_parameters
from lingu_ray.cost.models import Models, active_parameters
from lingu_ray.cost.trace import PassCost, decoder_pass
from lingu_ray.cost.workload import kv_transport, workers_per_device

TRAFFIC = 8
"""How often the bytes kept for the backward pass cross memory: written, read, and what is computed between and not
kept. From a model of three decoders on an H100, not measured."""
UPDATE_BYTES = 28
"""Bytes of a trained parameter in the update: weight, gradient and moments read, weight and moments written."""
LAUNCH_SECONDS = 28e-6
"""Seconds for the host to launch one of the decoder's operations on a GPU. Steps of SmolVLM-256M and Qwen2-VL-2B on an
H100 took 33 and 22 µs an operation beyond the other terms."""
VIEW_SECONDS = 0.02
"""Seconds of a CPU core to cut, scale and normalize one view of a picture: Idefics3's image processor took 0.24 to
0.34 s for pictures of 13 to 17 views."""
OBJECT_STORE = 2.7e9
"""Bytes a second of KV from GPU to GPU by the object store: two pageable copies and one in host memory; assumed."""


@dataclass(frozen=True)
class StepTime:
    """A worker's step: `seconds` by what takes them, `flops` by model, bytes of `kv` for its teacher.

    `pictures`: CPU seconds for the step's pictures, in the threads that read ahead.
    """

    seconds: dict[str, float]
    flops: dict[str, float]
    kv: float
    pictures: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


def step_time(run: Run, device: Device) -> StepTime:
    """A step of one worker on this device, slowed down by the workers that share it.

    The all-reduce of gradients between nodes is left out (docs/scaling.md has it).
    """
    config, models, load = run.config, run.models, run.load
    device = device.shared_by(workers_per_device(config.ray, load.on_gpu, config.ray.min_workers))
    pair, patches, queries = pair_of(models), patches_of_row(run), queries_of_row(run)
    row = Sample(patches, load.tokens - load.answer_tokens, load.answer_tokens, load.distilled)
    asked = Sample(patches, load.tokens - queries, queries, load.distilled)
    rows, rate = load.rows_of_step, device.rate(load.bf16)
    kv = rows * load.distilled * kv_of_rows(run, 1)
    computes_all = config.train.packing and config.train.attention == "sdpa"  # also what the mask then hides
    packed = load.rows * load.tokens if computes_all else None
    flops = {"student": rows * student_flops(pair, row, flops_passes(run), packed)}
    if models.teacher is not None:
        flops["teacher"] = rows * teacher_flops(pair, asked)
    seconds = {name: number / rate for name, number in flops.items()} | {
        "memory": load.micro_batches * TRAFFIC * _activations(run) / device.bandwidth,
        "optimizer": UPDATE_BYTES * updated_parameters(run) / device.bandwidth,
    }
    if load.on_gpu:
        seconds["launches"] = LAUNCH_SECONDS * _launches(run)
    if kv and kv_transport(config) == "object_store":
        seconds["KV"] = kv / (OBJECT_STORE if load.on_gpu else device.bandwidth / 2)
    views = rows * load.image_tokens / models.tower.tokens
    return StepTime(seconds, flops, kv, views * VIEW_SECONDS)


def pair_of(models: Models) -> Pair:
    """The pair's sizes for the formulas."""
    embeddings = models.student.output_head.weight_VD.numel()
    return Pair(
        decoder=active_parameters(models.student.decoder) - embeddings,
        tower=models.parameters["vision"],
        layers=models.text.num_hidden_layers,
        width=models.text.hidden_size,
        vocabulary=models.student.output_head.vocabulary,
        tower_attention=models.tower.attention_flops,
    )


def flops_passes(run: Run) -> Passes:
    """Cost of decoder and tower in forward passes: a backward pass costs two, or one where the weights are frozen."""
    models, recomputed = run.models, int(run.config.train.gradient_checkpointing)
    decoder = 3 if models.trained_layer_parameters >= models.layer_parameters / 2 else 2
    return Passes(decoder=decoder + recomputed, tower=3 + recomputed if models.trained["vision"] else 1)


def _plain_pass(run: Run) -> PassCost:
    """The decoder's pass over a micro-batch, without mask and gradient checkpointing."""
    load = run.load
    holds = bool(held_in_bf16(run))
    return decoder_pass(run.models.student.decoder, load.rows, load.tokens, False, load.bf16, False, holds=holds)


def _activations(run: Run) -> float:
    """Bytes that a micro-batch keeps without gradient checkpointing, rounded weights with them; a third more with it,
    for the second pass.
    """
    plain = _plain_pass(run)
    return (plain.kept + plain.rounded) * (4 / 3 if run.config.train.gradient_checkpointing else 1)


def _launches(run: Run) -> float:
    """Operations of a step that the worker launches; a teacher in an actor launches its own at the same time."""
    plain, checkpointing, batches = _plain_pass(run), run.config.train.gradient_checkpointing, run.load.micro_batches
    in_worker = run.models.teacher is not None and run.config.teacher.placement == "in_process"
    of_batch = plain.launches + plain.forward * (checkpointing + in_worker)
    return batches * of_batch - (0 if checkpointing else (batches - 1) * plain.once)
