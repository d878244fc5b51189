"""Memory of each process of a run, item by item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lingu_ray.config import Config
from lingu_ray.cost.devices import GIB
from lingu_ray.cost.formulas import FLOAT32, checkpoint_bytes, kv_bytes
from lingu_ray.cost.models import Models, count
from lingu_ray.cost.trace import PassCost, decoder_pass, loss_pass
from lingu_ray.cost.workload import Workload, kv_transport
from lingu_ray.distill.continuation import CALL_ELEMENTS, elements_of_a_key
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.head import output_head
from lingu_ray.evaluation.engines.transformers_engine import HEAD_CHUNK
from lingu_ray.runtime.checkpoints.checkpoint_writer import WHOLE_UP_TO
from lingu_ray.runtime.training.validation import MICRO_BATCHES_AHEAD

CONTEXT = 0.5 * GIB
"""What CUDA, cuBLAS and kernels take of a GPU for each process; assumed."""
PROCESS = 0.7 * GIB
"""Resident memory of a Python process with torch, Transformers and Ray; measured."""
FRAGMENTATION = "fragmentation of the allocator"
LOST = 0.3
"""Fragmentation: what a CPU's allocator (glibc) loses between a step's tensors, as a share of them; measured."""
_STEPS_AHEAD = 2  # whose rows are encoded
_VALIDATED = MICRO_BATCHES_AHEAD + 2  # micro-batches: the one that is being encoded last, and the one that runs


@dataclass(frozen=True)
class Run:
    """What the cost of a run follows from. `config`: with precision and transport chosen; `load`: of one worker."""

    config: Config
    models: Models
    load: Workload


@dataclass(frozen=True)
class Item:
    """A part of a process's memory, bytes."""

    what: str
    bytes: float


@dataclass(frozen=True)
class Process:
    """A process and the parts of its memory. `on_device`: it uses the GPU, where there is one; else host memory."""

    name: str
    on_device: bool
    items: tuple[Item, ...]

    @property
    def bytes(self) -> float:
        """The sum of its items."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class PassMemory:
    """Memory of a micro-batch: in the decoder, in the loss, in the vision tower.

    `activations`: bytes that the decoder keeps, or with gradient checkpointing computes again, for the backward pass.
    """

    decoder: PassCost
    loss: PassCost
    tower: PassCost
    activations: int


def pass_memory(run: Run) -> PassMemory:
    """Memory of the largest micro-batch: full of rows, all of them distilled."""
    models, load, train, distill = run.models, run.load, run.config.train, run.config.distill
    masked = train.packing or models.pads_with_mask
    shape = (1, load.rows * load.tokens) if train.packing else (load.rows, load.tokens)
    head, holds = models.student.output_head, bool(held_in_bf16(run))
    if holds and any(parameter is head.weight_VD for parameter in models.held_in_bf16):
        head = head.cast(torch.bfloat16)
    loss = loss_pass(
        head,
        None if models.teacher is None else output_head(models.teacher),
        models.text.hidden_size,
        load.rows * load.answer_tokens,
        load.bf16,
        trained=head.weight_VD.requires_grad,
        temperature=distill.temperature.at(0),
        divergence=divergence_of(distill.divergence, distill.beta, distill.top_k),
        on_gpu=load.on_gpu,
    )
    gathers = load.bf16 and shares_layers(run.config)
    decoder, unsaving = (
        decoder_pass(models.student.decoder, *shape, masked, load.bf16, checkpointing, gathers, holds)
        for checkpointing in (train.gradient_checkpointing, False)
    )
    return PassMemory(decoder, loss, _tower_pass(run), unsaving.kept)


def _tower_pass(run: Run) -> PassCost:
    """By a formula for transformers with layer norms and a two-layer MLP, which nearly all towers here are."""
    tower, number = run.models.tower, run.load.bytes_per_number
    patches = run.load.rows * patches_of_row(run)
    pixels = tower.values_per_patch * FLOAT32
    # residual stream and norm in float32; what the products read and write
    block = 3 * FLOAT32 * tower.width + number * (tower.width + 2 * tower.mlp_width)
    if not run.models.trained["vision"]:
        return PassCost(0, int(patches * (pixels + block)))
    widths = 9 if run.load.bf16 else 7
    kept_of_layer = 2 * FLOAT32 * tower.width + number * (widths * tower.width + 2 * tower.mlp_width)
    if run.config.train.gradient_checkpointing:  # a layer is computed again when the decoder keeps nothing more
        kept = patches * (pixels + FLOAT32 * tower.width * tower.layers)
        of_layer = kept_of_layer + FLOAT32 * tower.width + number * tower.mlp_width  # and gradients within it
        return PassCost(int(kept), int(kept + patches * of_layer))
    kept = patches * (pixels + tower.layers * kept_of_layer)
    return PassCost(int(kept), int(kept + patches * block))


def rounded_weights(run: Run, passes: PassMemory) -> int:
    """Bytes of trained weights that autocast rounds once a step, and keeps until its end (see `MicroBatches`)."""
    train, trained = run.config.train, run.models.trained
    if not run.load.bf16 or train.gradient_checkpointing:
        return 0
    return passes.decoder.rounded + run.load.bytes_per_number * (trained["vision"] + trained["projector"])


def patches_of_row(run: Run) -> float:
    """Patches that the vision tower reads of a row."""
    tower = run.models.tower
    return run.load.image_tokens * tower.patches / tower.tokens


def donated_of_row(run: Run) -> int:
    """Positions of a distilled row whose KV the student donates."""
    load, teacher = run.load, run.config.teacher
    if teacher.context == "prompt_text":
        return 0
    return load.image_tokens if teacher.scope == "visual" else load.tokens - load.answer_tokens - 1


def queries_of_row(run: Run) -> int:
    """Positions of a distilled row that the teacher computes."""
    teacher = run.config.teacher
    reads_text = teacher.context == "prompt_text" or teacher.scope == "visual"
    return run.load.answer_tokens + (run.load.text_tokens if reads_text else 0)


def kv_of_rows(run: Run, rows: float) -> float:
    """Bytes of the keys and values that so many distilled rows donate; 0 without a teacher."""
    models = run.models
    if models.teacher is None:
        return 0.0
    tokens = rows * donated_of_row(run)
    layers = models.text.num_hidden_layers
    return kv_bytes(layers, models.kv_heads, models.head_dim, tokens, run.load.bytes_per_number)


def worker(run: Run, passes: PassMemory) -> Process:
    """The worker: what it always holds, what a step keeps, and the most that the step needs on top."""
    load = run.load
    batches = f"{load.held_batches} micro-batch{'es' * (load.held_batches > 1)}"
    kept = load.held_batches * (passes.decoder.kept + passes.tower.kept)
    items = [*_training_state(run), *_teacher_in_worker(run), Item(f"kept for the backward pass, {batches}", kept)]
    if rounded := rounded_weights(run, passes):
        items.append(Item("trained weights, rounded to bf16", rounded))
    if kv_transport(run.config) == "cuda_ipc":
        items.append(Item(f"captured KV, {batches}", load.held_batches * kv_of_rows(run, load.rows)))
    moment, peak = _peak_of_step(run, passes)
    items.append(Item(f"peak of a step on top: {moment}", peak))
    if not load.on_gpu:
        made = load.held_batches * (passes.activations + passes.tower.kept) + peak
        items.append(Item(FRAGMENTATION, LOST * made))
    return Process("worker", True, (*items, _overhead(load)))


def _training_state(run: Run) -> Iterator[Item]:
    """Weights, gradients and moments; under FSDP2 of the worker's own shards, and of the layers that are gathered."""
    models, learns = run.models, updated_parameters(run)
    weights = sum(models.parameters.values()) - _share_elsewhere(run.config) * models.layer_parameters
    held = held_in_bf16(run)
    yield Item("weights, float32", FLOAT32 * (weights - held))
    if held:
        yield Item("frozen weights, bf16", run.load.bytes_per_number * held)
    yield Item("gradients, float32", FLOAT32 * learns)
    yield Item("optimizer: two moments", 2 * FLOAT32 * learns)
    if shares_layers(run.config):  # one runs, the next one is fetched
        yield Item("two layers, gathered", 2 * _gathered(run) / models.text.num_hidden_layers)


def _gathered(run: Run) -> int:
    """Bytes of the decoder's layers gathered from all workers, under FSDP2."""
    return run.load.bytes_per_number * run.models.layer_parameters


def _teacher_in_worker(run: Run) -> Iterator[Item]:
    """The whole teacher where it is in the worker's process, else its output head."""
    teacher, number = run.models.teacher, run.load.bytes_per_number
    if teacher is not None and run.config.teacher.placement == "in_process":
        yield Item("the teacher's weights", count(teacher) * number)
    elif teacher is not None:
        yield Item("the teacher's output head", output_head(teacher).weight_VD.numel() * number)


def _peak_of_step(run: Run, passes: PassMemory) -> tuple[str, float]:
    """The moment of a step that needs most beside what is kept, and its bytes."""
    calls = run.load.batches_per_call
    copies = calls * (2 if calls > 1 else 1)  # the parts, and the whole that is made of them
    captured = 0.0 if kv_transport(run.config) == "cuda_ipc" else copies * kv_of_rows(run, run.load.rows)
    if run.config.teacher.placement == "in_process":
        captured += teacher_pass_memory(run)
    moments = {
        "vision tower": passes.tower.peak - passes.decoder.kept - passes.tower.kept,
        "captured KV": captured,
        "loss": passes.loss.peak,
        "backward pass": passes.loss.kept + passes.decoder.peak - passes.decoder.kept + _scattered_gradients(run),
        "last gradients": _last_gradients(run, passes) - passes.decoder.kept - passes.tower.kept,
    }
    if shares_layers(run.config):
        held = run.load.held_batches * (passes.decoder.kept + passes.tower.kept) + rounded_weights(run, passes)
        moments["all layers, gathered to validate"] = _gathered(run) - held
    largest = max(moments, key=lambda name: moments[name])
    return largest, max(0.0, moments[largest])


def _scattered_gradients(run: Run) -> float:
    """Bytes of a layer's gradients under FSDP2: whole, as they are computed, and in float32, as they are scattered."""
    if not shares_layers(run.config):
        return 0.0
    of_layer = run.models.trained_layer_parameters / run.models.text.num_hidden_layers
    return (run.load.bytes_per_number + FLOAT32) * of_layer


def _last_gradients(run: Run, passes: PassMemory) -> float:
    """Bytes of the gradients that a backward pass finishes last, when it keeps nothing more.

    Those of embeddings are as large as these; if they are the output head, too, its own wait for them, and both are
    added. Those of weights that an earlier micro-batch has rounded wait in bf16: autograd takes its latest steps first.
    """
    embeddings = cast(Tensor, run.models.student.model.get_input_embeddings().weight)
    tied = embeddings is run.models.student.output_head.weight_VD
    last = FLOAT32 * embeddings.numel() * (3 if tied else 1) if embeddings.requires_grad else 0
    return last + (rounded_weights(run, passes) if run.load.micro_batches > 1 else 0)


def updated_parameters(run: Run) -> float:
    """Parameters that a worker itself updates, and of which it has gradients and moments."""
    return sum(run.models.trained.values()) - _share_elsewhere(run.config) * run.models.trained_layer_parameters


def held_in_bf16(run: Run) -> float:
    """Frozen parameters, or shards of them, that a worker holds in bf16 (see `runtime/training/frozen.py`)."""
    if not run.load.bf16:
        return 0
    held = {id(p): p.numel() for p in run.models.held_in_bf16}
    if held and shares_layers(run.config):  # of layers all frozen matrices, fused experts among them
        matrices = [p for p in run.models.student.layers.parameters() if not p.requires_grad and p.ndim > 1]
        held |= {id(p): p.numel() * (1 - _share_elsewhere(run.config)) for p in matrices}
    return sum(held.values())


def shares_layers(config: Config) -> bool:
    """Whether each worker holds a share of the decoder's layers (FSDP2)."""
    return config.train.parallelism == "fsdp2" and config.ray.min_workers > 1


def _share_elsewhere(config: Config) -> float:
    """Share of the decoder's layers that other workers hold."""
    return 1 - 1 / config.ray.min_workers if shares_layers(config) else 0.0


def teacher(run: Run) -> Process | None:
    """The teacher's own process; None where there is none."""
    model, load = run.models.teacher, run.load
    if model is None or kv_transport(run.config) is None:
        return None
    items = [Item("weights", count(model) * load.bytes_per_number)]
    if load.on_gpu and kv_transport(run.config) != "cuda_ipc":
        items.append(Item("KV of a call, copied", kv_of_rows(run, load.batches_per_call * load.rows)))
    items.append(Item("keys, mask and queries", teacher_pass_memory(run)))
    return Process("teacher", True, (*items, _overhead(load)))


def teacher_pass_memory(run: Run) -> float:
    """Bytes of the teacher's pass beside weights and donated KV: keys of a layer, masks, queries; 0 if none."""
    models, load = run.models, run.load
    if models.teacher is None:
        return 0.0
    queries, number = queries_of_row(run), load.bytes_per_number
    masks, keys = elements_of_a_key(models.teacher.get_decoder().config)
    of_row = load.tokens * (queries * masks + keys)
    rows = min(load.batches_per_call * load.rows, max(1, CALL_ELEMENTS // of_row))  # that are run together
    width = rows * queries * number * (5 * models.text.hidden_size + 3 * models.mlp_width)
    return rows * of_row * number + width


def engine(run: Run) -> Process | None:
    """An evaluation engine (Transformers) with the student; None without tasks."""
    models, settings = run.models, run.config.evaluation
    if not settings.tasks:
        return None
    name, number = {"fp32": ("float32", FLOAT32), "bf16": ("bf16", 2)}[settings.precision]
    tokens = settings.tokens_per_batch
    kv = kv_bytes(models.text.num_hidden_layers, models.kv_heads, models.head_dim, tokens, number)
    logits = 2 * FLOAT32 * HEAD_CHUNK * models.student.output_head.vocabulary
    batch = tokens * number * (8 * models.text.hidden_size + 3 * models.mlp_width) + kv + logits
    if any(task.kind == "vision" for task in settings.tasks):  # the tower is done when the decoder begins
        tower, patches = models.tower, tokens / run.load.tokens * patches_of_row(run)
        batch = max(batch, patches * number * (tower.values_per_patch + 4 * tower.width + 2 * tower.mlp_width))
    weights = number * sum(models.parameters.values())
    items = Item(f"weights, {name}", weights), Item(f"a batch of {tokens} tokens", batch)
    return Process("evaluation", True, (*items, _overhead(run.load)))


def host(run: Run) -> Process:
    """What a worker takes of its node's memory beside its device."""
    config, models, load = run.config, run.models, run.load
    values = models.tower.values_per_patch
    patch_bytes = values * load.bytes_per_number + values / 3  # a byte of the pixel mask for three colors
    in_use = max(load.rows_of_step, _VALIDATED * load.rows)  # of a step, or of a validation between two
    rows = _STEPS_AHEAD * load.rows_of_step + in_use
    items = [Item("rows encoded ahead: pictures", rows * patches_of_row(run) * patch_bytes)]
    saved = checkpoint_bytes(sum(models.trained.values()))
    copied = 0.0
    if config.train.checkpoint == "sharded" or (config.train.checkpoint == "auto" and saved > WHOLE_UP_TO):
        copied = saved / config.ray.min_workers
        items.append(Item("copy of a checkpoint that is being written", copied))
    if kv_transport(config) == "object_store":
        items.append(Item("object store: KV", load.held_batches * kv_of_rows(run, load.rows)))
    if load.on_gpu:
        beyond = _models_on_cpu(run, copied) - sum(item.bytes for item in items)
        items.append(Item("more while models are loaded or exported", max(0.0, beyond)))
        processes = 1 + (kv_transport(config) is not None)
        items.append(Item("the processes themselves", processes * PROCESS))
    return Process("host", False, tuple(items))


def _models_on_cpu(run: Run, copied: float) -> float:
    """Bytes on the host of a GPU where models are there, too: while they are loaded, or while the first worker exports.

    The student's files are mapped, and take none. `copied`: of a checkpoint, which stay. An export is gathered in the
    published dtype.
    """
    models, student = run.models, sum(run.models.parameters.values())
    teacher = 0 if models.teacher is None else count(models.teacher) * run.load.bytes_per_number
    published = cast(torch.dtype, models.student.model.config.dtype or torch.float32)
    return max(teacher, copied + published.itemsize * student)


def _overhead(load: Workload) -> Item:
    """What a process takes that computes nothing."""
    return Item("CUDA context, assumed", CONTEXT) if load.on_gpu else Item("the process itself", PROCESS)
