"""Memory of each process of a run, item by item."""

from __future__ import annotations

from dataclasses import dataclass

from lingu_ray.config import Config
from lingu_ray.cost.devices import GIB
from lingu_ray.cost.formulas import FLOAT32, checkpoint_bytes, kv_bytes
from lingu_ray.cost.models import Models, count
from lingu_ray.cost.trace import Held, decoder_pass, loss_pass
from lingu_ray.cost.workload import Workload, travels_by
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
LOST = 0.3
"""What a CPU's allocator (glibc) loses between the tensors that a step makes, as a share of them; measured."""
_STEPS_AHEAD = 2  # whose rows are encoded
_VALIDATED = MICRO_BATCHES_AHEAD + 2  # micro-batches: the one that is being encoded last, and the one that runs


@dataclass(frozen=True)
class Item:
    """A part of a process's memory, bytes."""

    what: str
    bytes: float


@dataclass(frozen=True)
class Process:
    """A process and what it needs; `on_device`: on the GPU where there is one, else and otherwise in host memory."""

    name: str
    on_device: bool
    items: tuple[Item, ...]

    @property
    def bytes(self) -> float:
        """The sum of its items."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class PassMemory:
    """Memory of a micro-batch: in the decoder, in the loss; `tower`: in the vision tower.

    `made`: what the decoder keeps, or makes again for the backward pass, bytes.
    """

    decoder: Held
    loss: Held
    tower: Held
    made: int


def passes_of(config: Config, models: Models, load: Workload) -> PassMemory:
    """Memory of the largest micro-batch: full of rows, all of them distilled."""
    masked = config.train.packing or models.pads_with_mask
    shape = (1, load.rows * load.tokens) if config.train.packing else (load.rows, load.tokens)
    checkpointing = config.train.gradient_checkpointing
    distill = config.distill
    loss = loss_pass(
        models.student.output_head,
        None if models.teacher is None else output_head(models.teacher),
        models.text.hidden_size,
        load.rows * load.answer_tokens,
        load.bf16,
        trained=models.student.output_head.weight_VD.requires_grad,
        temperature=distill.temperature.at(0),
        divergence=divergence_of(distill.divergence, distill.beta, distill.top_k),
        on_gpu=load.on_gpu,
    )
    held, whole = (
        decoder_pass(models.student.decoder, *shape, masked, load.bf16, saves) for saves in (checkpointing, False)
    )
    return PassMemory(held, loss, _tower(config, models, load), whole.kept)


def _tower(config: Config, models: Models, load: Workload) -> Held:
    """Of a transformer with layer norms and an MLP of two layers, as all towers here nearly are."""
    tower, number = models.tower, load.number
    patches = load.rows * patches_of_row(models, load)
    pixels = tower.patch_numbers * FLOAT32
    # residual stream and norm in float32; what the products read and write
    block = 3 * FLOAT32 * tower.width + number * (tower.width + 2 * tower.inner)
    if not models.trained["vision"]:
        return Held(0, int(patches * (pixels + block)))
    kept_of_layer = 2 * FLOAT32 * tower.width + number * ((9 if load.bf16 else 7) * tower.width + 2 * tower.inner)
    layers = 1 if config.train.gradient_checkpointing else tower.layers
    inputs = FLOAT32 * tower.width * (tower.layers if config.train.gradient_checkpointing else 0)
    kept = patches * (pixels + inputs + layers * kept_of_layer)
    return Held(int(kept), int(kept + patches * block))


def patches_of_row(models: Models, load: Workload) -> float:
    """Patches that the tower reads of a row."""
    return load.image_tokens * models.tower.patches / models.tower.tokens


def donated_of_row(config: Config, load: Workload) -> int:
    """Positions of a distilled row whose KV the student donates."""
    if config.teacher.context == "prompt_text":
        return 0
    return load.image_tokens if config.teacher.scope == "visual" else load.tokens - load.answer_tokens - 1


def queries_of_row(config: Config, load: Workload) -> int:
    """Positions of a distilled row that the teacher computes."""
    whole = config.teacher.context == "prompt_text" or config.teacher.scope == "visual"
    return load.answer_tokens + (load.text_tokens if whole else 0)


def kv_of_rows(config: Config, models: Models, load: Workload, rows: float) -> float:
    """Keys and values that so many distilled rows donate, bytes."""
    layers = models.text.num_hidden_layers
    return kv_bytes(layers, models.kv_heads, models.head_dim, rows * donated_of_row(config, load), load.number)


def worker(config: Config, models: Models, load: Workload, passes: PassMemory) -> Process:
    """The worker: what stays, and the most that a step needs beside it."""
    away, learns_here = _away(config), learned_here(config, models)
    of_a_layer = models.layer_parameters / models.text.num_hidden_layers
    gathered = 2 * of_a_layer if away else 0  # one runs, the next one is fetched
    kept_here = sum(models.parameters.values()) - away * models.layer_parameters + gathered
    items = [
        Item("weights, float32", FLOAT32 * kept_here),
        Item("gradients, float32", FLOAT32 * learns_here),
        Item("optimizer: two moments", 2 * FLOAT32 * learns_here),
    ]
    in_process = config.teacher.placement == "in_process"
    if models.teacher is not None and not in_process:
        items.append(Item("the teacher's output head", output_head(models.teacher).weight_VD.numel() * load.number))
    if models.teacher is not None and in_process:
        items.append(Item("the teacher's weights", count(models.teacher) * load.number))
    kv = kv_of_rows(config, models, load, load.rows) if models.teacher is not None else 0.0
    joined = load.of_a_call * (2 if load.of_a_call > 1 else 1)  # the parts, and the whole that is made of them
    lends = travels_by(config) == "cuda_ipc"
    kept, alive = passes.decoder.kept + passes.tower.kept, f"{load.alive} micro-batch{'es' * (load.alive > 1)}"
    items.append(Item(f"kept for the backward pass, {alive}", load.alive * kept))
    if lends:
        items.append(Item(f"captured KV, {alive}", load.alive * kv))
    moments = {
        "vision tower": passes.tower.peak - kept,
        "captured KV": 0.0 if lends else joined * kv + (teacher_working(config, models, load) if in_process else 0.0),
        "loss": passes.loss.peak,
        "backward pass": passes.loss.kept + passes.decoder.peak - passes.decoder.kept,
    }
    largest = max(moments, key=lambda name: moments[name])
    beside = max(0.0, moments[largest])
    items.append(Item(f"the most beside it: {largest}", beside))
    if not load.on_gpu:
        made = load.alive * (passes.made + passes.tower.kept) + beside
        items.append(Item("lost between them by the allocator", LOST * made))
    return Process("worker", True, (*items, _itself(load)))


def learned_here(config: Config, models: Models) -> float:
    """Parameters whose gradients and moments a worker has, and which it updates."""
    return sum(models.trained.values()) - _away(config) * models.trained_layer_parameters


def _away(config: Config) -> float:
    """Share of the decoder's layers that other workers have, under FSDP2."""
    return 1 - 1 / config.ray.min_workers if config.train.parallelism == "fsdp2" else 0.0


def teacher(config: Config, models: Models, load: Workload) -> Process | None:
    """The teacher's own process; None where there is none."""
    if models.teacher is None or travels_by(config) is None:
        return None
    kv = kv_of_rows(config, models, load, load.of_a_call * load.rows)
    items = [Item("weights", count(models.teacher) * load.number)]
    if load.on_gpu and travels_by(config) != "cuda_ipc":
        items.append(Item("KV of a call, copied", kv))
    items.append(Item("keys, mask and queries", teacher_working(config, models, load)))
    return Process("teacher", True, (*items, _itself(load)))


def teacher_working(config: Config, models: Models, load: Workload) -> float:
    """What the teacher's pass takes beside weights and donated KV: keys of a layer, masks, queries; 0 without one."""
    if models.teacher is None:
        return 0.0
    queries, number = queries_of_row(config, load), load.number
    masks, keys = elements_of_a_key(models.teacher.get_decoder().config)
    of_row = load.tokens * (queries * masks + keys)
    rows = min(load.of_a_call * load.rows, max(1, CALL_ELEMENTS // of_row))  # that are run together
    width = rows * queries * number * (5 * models.text.hidden_size + 3 * models.inner)
    return rows * of_row * number + width


def engine(config: Config, models: Models, load: Workload) -> Process | None:
    """An engine of the evaluation with the student, by Transformers; None without tasks."""
    if not config.evaluation.tasks:
        return None
    name, number = {"fp32": ("float32", FLOAT32), "bf16": ("bf16", 2)}[config.evaluation.precision]
    tokens, width = config.evaluation.tokens_per_batch, models.text.hidden_size
    kv = kv_bytes(models.text.num_hidden_layers, models.kv_heads, models.head_dim, tokens, number)
    batch = tokens * number * (8 * width + 3 * models.inner) + kv
    logits = 2 * FLOAT32 * HEAD_CHUNK * models.student.output_head.vocabulary
    weights = number * sum(models.parameters.values())
    items = Item(f"weights, {name}", weights), Item(f"a batch of {tokens} tokens", batch + logits)
    return Process("evaluation", True, (*items, _itself(load)))


def host(config: Config, models: Models, load: Workload) -> Process:
    """What a worker takes of its node's memory beside its device."""
    pixels = models.tower.patch_numbers
    numbers = pixels * load.number + pixels / 3  # a byte of its mask for the three colors
    in_hand = max(load.rows_of_step, _VALIDATED * load.rows)  # of a step, or of a validation between two
    rows = _STEPS_AHEAD * load.rows_of_step + in_hand
    items = [Item("rows encoded ahead: pictures", rows * patches_of_row(models, load) * numbers)]
    learns = sum(models.trained.values())
    saved = checkpoint_bytes(sum(models.parameters.values()), learns)
    if config.train.checkpoint == "sharded" or (config.train.checkpoint == "auto" and saved > WHOLE_UP_TO):
        items.append(Item("copy of a checkpoint that is being written", saved / config.ray.min_workers))
    if travels_by(config) == "object_store":
        kv = load.alive * kv_of_rows(config, models, load, load.rows)
        items.append(Item("object store: KV", kv))
    if load.on_gpu:
        processes = 1 + (travels_by(config) is not None)
        items.append(Item("the processes themselves", processes * PROCESS))
    return Process("host", False, tuple(items))


def _itself(load: Workload) -> Item:
    return Item("CUDA context, assumed", CONTEXT) if load.on_gpu else Item("the process itself", PROCESS)
