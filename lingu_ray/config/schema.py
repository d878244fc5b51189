"""The typed configuration of a run.

A run is one `Config`: a tree of small sections, read from a YAML recipe and dotted `key=value` overrides
(`lingu_ray.config.command_line`). Every field carries its meaning as a description, which is what `--help` prints.
Whatever can be wrong in the settings alone is refused here, before Ray starts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from lingu_ray.config.task_catalog import complete
from lingu_ray.config.task_templates import compile_template
from lingu_ray.paths import DataPath, LocalFolder, LocalPath, ModelPath, TaskPath, TrackingUri

Policy = Literal["selective", "all", "language_only", "none"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "tv"]
Format = Literal[
    "messages",
    "cauldron",
    "finevision",
    "llava",
    "prompt_completion",
    "instruction",
    "text",
    "scienceqa",
    "image_folder",
    "webdataset",
    "template",
]
TaskType = Literal[
    "multiple_choice",
    "last_word",
    "perplexity",
    "exact_match",
    "vqa_accuracy",
    "anls",
    "relaxed_accuracy",
    "cider",
    "rouge_l",
    "mme",
    "lm_eval",
]
FORMAT_TYPES = ("exact_match", "anls", "relaxed_accuracy", "cider", "rouge_l")
TASK_TYPES = {
    "language": ("multiple_choice", "last_word", "perplexity", "exact_match", "lm_eval"),
    "vision": ("multiple_choice", *FORMAT_TYPES, "vqa_accuracy", "mme"),
}
RESERVED_FIELDS = ("item", "logliks", "tokens", "greedy", "prediction")  # columns of a task's measured items


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, defaults are validated, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Schedule(Section):
    """A value that moves over the run: `{start: 4, end: 1, shape: cosine}`; a plain number stays constant.

    `[[0, 4], [0.5, 2]]` moves in steps: 4 from the begin, 2 from half of the run on.
    """

    start: float = Field(ge=0, description="value at the first step")
    end: float = Field(ge=0, description="value at and after the end of the schedule")
    shape: Literal["linear", "cosine"] = Field("linear", description="how it moves from start to end")
    until: float = Field(1.0, gt=0, le=1, description="fraction of the run at which `end` is reached")
    points: tuple[tuple[float, float], ...] = Field(
        (), description="[fraction of the run, value] pairs, each value held until the next; in place of the others"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        begins = [begin for begin, _ in self.points]
        if self.points and (begins[0] != 0 or begins != sorted(set(begins)) or min(v for _, v in self.points) < 0):
            raise ValueError(f"points must begin at 0, rise, and have values from 0 on, found {self.points}")
        return self

    def __str__(self) -> str:
        if self.points:
            return ", ".join(f"{value:g} from {begin:.0%}" for begin, value in self.points)
        return f"{self.start:g}" if self.start == self.end else f"{self.start:g} → {self.end:g} ({self.shape})"

    def at(self, progress: float) -> float:
        """Value at `progress` (fraction of the run done, 0 to 1)."""
        if self.points:
            return next(value for begin, value in reversed(self.points) if begin <= progress)
        x = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        return self.start + (self.end - self.start) * x


def _written_short(value: object) -> object:
    """A number, or a list of points, as the schedule that it means."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"start": value, "end": value}
    if isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return {"start": value[0][1], "end": value[-1][1], "points": value}
    return value


Scheduled = Annotated[Schedule, BeforeValidator(_written_short)]


class VisionConfig(Section):
    """A new vision tower and projector for `student.from_teacher` (Idefics3/SmolVLM: SigLIP + pixel shuffle)."""

    image_size: PositiveInt = Field(512, description="side of the square input, pixels")
    patch_size: PositiveInt = Field(16, description="side of one patch, pixels")
    hidden_size: PositiveInt = Field(768, description="width of the tower")
    intermediate_size: PositiveInt = Field(3072, description="width of its MLP")
    layers: PositiveInt = Field(12, description="number of layers")
    heads: PositiveInt = Field(12, description="attention heads")
    pixel_shuffle: PositiveInt = Field(4, description="side of the square of patches folded into one image token")

    @model_validator(mode="after")
    def _whole(self) -> VisionConfig:
        if self.image_size % (self.patch_size * self.pixel_shuffle):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size × pixel_shuffle "
                f"= {self.patch_size * self.pixel_shuffle}"
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
        return self


class StudentConfig(Section):
    """The VLM to train: an existing one (`path`), or a new one built on the teacher (`from_teacher`)."""

    path: ModelPath | None = Field(None, description="folder or hub id of a Hugging Face image-text-to-text model")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    from_teacher: VisionConfig | None = Field(
        None, description="build a new VLM: the teacher's decoder + this vision tower"
    )
    trust_remote_code: bool = Field(False, description="run model code that comes with the checkpoint")

    @model_validator(mode="after")
    def _one_origin(self) -> StudentConfig:
        if (self.path is None) == (self.from_teacher is None):
            raise ValueError("give exactly one of student.path (a VLM) and student.from_teacher (a vision config)")
        return self


class TeacherConfig(Section):
    """The original, frozen, text-only LM that the student's decoder came from."""

    path: ModelPath = Field(description="folder or hub id of the causal LM")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    gguf_file: str | None = Field(None, description="name of a GGUF file in `path`, for models that come so")
    placement: Literal["actor", "in_process"] = Field(
        "actor", description="actor: a Ray actor on the worker's node; in_process: inside the worker"
    )
    transport: Literal["object_store", "cuda_ipc", "nixl"] = Field(
        "object_store",
        description="how the KV reaches the actor. object_store: shared memory; cuda_ipc: nothing moves, one GPU; nixl",
    )
    context: Literal["shared_kv", "prompt_text"] = Field(
        "shared_kv", description="shared_kv: continue from the student's KV; prompt_text: ablation, reads text only"
    )
    scope: Literal["full", "visual"] = Field(
        "full", description="donated positions: the full prompt, or the visual positions alone"
    )
    look_ahead: int | None = Field(
        None,
        ge=0,
        description="micro-batches the student may run ahead while the teacher answers; "
        "null: 1 on GPUs, 0 on CPUs, where both share the cores",
    )
    max_restarts: int = Field(3, ge=0, description="times a teacher actor that died is replaced")

    @model_validator(mode="after")
    def _sent_to_an_actor(self) -> TeacherConfig:
        if self.placement == "in_process" and self.transport != "object_store":
            raise ValueError(
                f"teacher.transport={self.transport} reaches a teacher actor, and in_process there is none: "
                "set teacher.placement=actor, or leave teacher.transport out"
            )
        return self


class SourceConfig(Section):
    """One source of the corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="unique name; metrics and counts carry it")
    format: Format = Field(description="what a record looks like (see docs/guide.md, 'Corpus')")
    path: DataPath = Field(description="file, glob, folder (also `datasets.save_to_disk`), or hub id of a dataset")
    subset: str | None = Field(None, description="hub: configuration name")
    split: str = Field("train", description="hub and save_to_disk: split")
    language_heavy: bool = Field(False, description="distilled under `policy: selective`")
    weight: float | None = Field(None, gt=0, description="share in the mixture; give it to all sources or none")
    ce_weight: float = Field(1.0, ge=0, description="weight of its tokens' cross-entropy")
    kd_weight: float = Field(1.0, ge=0, description="weight of its tokens' KD term, where the policy distils it")
    limit: PositiveInt | None = Field(None, description="use the first N records only")
    image_root: LocalFolder | None = Field(None, description="folder that relative image paths start from")
    prompt: str | None = Field(None, description="question, for formats that have none; `template`: format string")
    answer: str | None = Field(None, description="`template`, `image_folder`: format string of the answer")
    image: str | None = Field(None, description="`template`: column that holds the image path or bytes")
    prompt_words: PositiveInt = Field(32, description="`text`: words of a passage that are the prompt")
    answer_words: PositiveInt = Field(64, description="`text`: words that follow and are the answer")

    @model_validator(mode="after")
    def _template_is_complete(self) -> SourceConfig:
        if self.format == "template" and not (self.prompt and self.answer):
            raise ValueError(f"source {self.name}: format 'template' needs `prompt` and `answer` format strings")
        return self


class CorpusConfig(Section):
    """The mixed corpus: built once by Ray Data, found again by its fingerprint."""

    sources: tuple[SourceConfig, ...] = Field((), description="what is mixed")
    rows: PositiveInt | None = Field(
        None, description="length of the order; null: until every source was seen once, smaller ones repeat by weight"
    )
    seed: int = Field(0, description="seed of the global order")
    validation_rows: int = Field(64, ge=0, description="rows held out of each source for validation")
    max_length: PositiveInt = Field(2048, description="longest sample in tokens, image tokens included")
    max_reject_rate: float = Field(0.05, ge=0, le=1, description="share of bad rows of a source above which to stop")
    rows_per_shard: PositiveInt = Field(1024, description="rows of one parquet file")
    if_changed: Literal["refuse", "warn"] = Field(
        "refuse", description="resuming after the data changed. refuse: an error; warn: train on with the new data"
    )
    cache_dir: LocalPath | None = Field(None, description="where corpora are kept; null: <output_dir>/.corpora")

    @model_validator(mode="after")
    def _sources_fit(self) -> CorpusConfig:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"corpus.sources: names must be unique, found twice: {', '.join(twice)}")
        unweighted = [s.name for s in self.sources if s.weight is None]
        if unweighted and len(unweighted) < len(names):
            raise ValueError(f"corpus.sources: give `weight` to all sources or to none; missing: {unweighted}")
        return self


class DistillConfig(Section):
    """The method: which rows are distilled, by which divergence, how strongly."""

    policy: Policy = Field(
        "selective",
        description="selective: CE on all, KD on language-heavy sources; all: KD on all; "
        "language_only: language-heavy sources alone; none: CE only",
    )
    divergence: Divergence = Field(
        "forward_kl", description="forward_kl KL(T‖S), reverse_kl KL(S‖T), jsd(beta), or tv, total variation"
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: weight of the teacher in the mixture")
    top_k: PositiveInt | None = Field(
        None, description="compare the teacher's k likeliest tokens and the rest as one; null: every token"
    )
    temperature: Scheduled = Field(
        Schedule(start=1.0, end=1.0), description="softmax temperature τ of both in the KD term; number or schedule"
    )
    on_policy: float = Field(
        0.0, ge=0, le=1, description="share of the distilled rows whose answer the student samples itself, for KD alone"
    )
    sampled_tokens: PositiveInt = Field(64, description="on_policy: longest sampled answer")
    sampling_temperature: float = Field(
        1.0, gt=0, description="on_policy: temperature of the sampling; not τ of the KD term"
    )
    ce_on_distilled: float = Field(
        1.0, ge=0, description="factor on the CE of distilled rows; below 1 the teacher's word counts more there"
    )
    w_ce: Scheduled = Field(Schedule(start=1.0, end=1.0), description="weight of the CE term; number or schedule")
    w_kd: Scheduled = Field(Schedule(start=1.0, end=1.0), description="weight of the KD term; number or schedule")

    @model_validator(mode="after")
    def _warm(self) -> DistillConfig:
        if min(self.temperature.start, self.temperature.end, *(value for _, value in self.temperature.points)) <= 0:
            raise ValueError("distill.temperature must be above 0")
        return self


class LearningRates(Section):
    """One learning rate a parameter group; 0 freezes the group."""

    vision: float = Field(0.0, ge=0, description="vision tower")
    projector: float = Field(5e-5, ge=0, description="what maps image features to the decoder's width")
    decoder: float = Field(1e-5, ge=0, description="language decoder, embeddings and head")


class LoraConfig(Section):
    """Low-rank adapters on the decoder's linear layers (LoRA); the export has them merged."""

    rank: PositiveInt = Field(16, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="they are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on their input")
    targets: tuple[str, ...] = Field((), description="names of layers, such as q_proj; empty: every linear layer")


class TrainConfig(Section):
    """The optimization."""

    steps: PositiveInt = Field(1000, description="optimizer steps")
    rows_per_step: PositiveInt = Field(32, description="rows of one optimizer step, over all workers")
    tokens_per_micro_batch: PositiveInt = Field(8192, description="tokens a forward pass may hold, padding included")
    packing: bool = Field(
        False, description="several samples in one row instead of padding; none sees another; pays with flash attention"
    )
    learning_rates: LearningRates = Field(LearningRates(), description="by parameter group")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW betas")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (matrices only)")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps that warms up linearly")
    min_lr: float = Field(0.1, ge=0, le=1, description="cosine decays to this share of the learning rate")
    grad_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; weights stay fp32")
    gradient_checkpointing: bool = Field(False, description="recompute activations, for memory")
    lora: LoraConfig | None = Field(
        None, description="train adapters, with learning_rates.decoder, in place of the decoder's weights; null: off"
    )
    parallelism: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp: the whole model on each worker; fsdp2: the decoder's layers sharded over the workers"
    )
    compile: bool = Field(False, description="torch.compile each decoder layer; the first steps are slow")
    validate_every: int = Field(100, ge=0, description="steps between validations; 0: at the end only")
    sample_every: int = Field(100, ge=0, description="steps between sample generations; 0: at the end only")
    samples: int = Field(4, ge=0, description="validation rows to answer each time")
    checkpoint_every: PositiveInt = Field(100, description="steps between checkpoints")
    keep_last: PositiveInt = Field(2, description="newest checkpoints kept, besides the best by validation loss")

    @model_validator(mode="after")
    def _decoder_learns(self) -> TrainConfig:
        needs = "train.lora" if self.lora else "train.parallelism=fsdp2" if self.parallelism == "fsdp2" else None
        if needs and not self.learning_rates.decoder:
            raise ValueError(f"{needs} needs a decoder that learns: set train.learning_rates.decoder above 0")
        return self


class RayConfig(Section):
    """Where and how wide it runs."""

    address: str | None = Field(None, description="cluster to join ('auto', ray://…); null: a job's own, or local")
    num_workers: PositiveInt = Field(1, description="data-parallel workers")
    use_gpu: bool | None = Field(None, description="one GPU a worker; null: where the cluster has some")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs reserved for a worker and its teacher")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads of worker and teacher; null: all")
    max_failures: int = Field(2, ge=0, description="times a broken worker group is started again from a checkpoint")


class TrackingConfig(Section):
    """MLflow."""

    uri: TrackingUri | None = Field(
        None,
        description="tracking URI; null: $MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in `output_dir`, "
        "of an evaluation in or beside `out`",
    )
    experiment: str = Field("lingu_ray", description="experiment name")
    run_name: str | None = Field(None, description="name of the MLflow run; null: `name`")
    parent: LocalPath | None = Field(
        None, description="folder of a run, sweep or evaluation to nest this one under; null: none"
    )
    system_metrics: bool = Field(True, description="log CPU, memory and GPU use")
    tags: dict[str, str] = Field({}, description="tags of the MLflow run, to filter by")


class TaskConfig(Section):
    """One evaluation task: where its items come from, what they ask, and how the answers are judged."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="unique name")
    kind: Literal["language", "vision"] = Field(description="language: counts for recovery; vision: for retention")
    type: TaskType = Field(description="how answers are judged; lm_eval: by a task of lm-evaluation-harness")
    path: TaskPath = Field(
        description="file, glob, folder (also `datasets.save_to_disk`), or hub id of a dataset; "
        "lm_eval: the task's name, or its YAML file"
    )
    subset: str | None = Field(None, description="hub: configuration name")
    split: str | None = Field(None, description="hub and save_to_disk: split")
    where: str | None = Field(
        None, description="rows to take: a column or a Jinja {{expression}} that is true or false"
    )
    format: Format | None = Field(
        None, description="what a row is, of the corpus's formats; its last question is asked"
    )
    fields: dict[str, str] = Field(
        {}, description="an item's field: a column, or a Jinja template over the columns; empty: the row has the fields"
    )
    limit: PositiveInt | None = Field(None, description="first N items only")
    delimiter: str = Field(" ", description="text between a query or context and what is scored after it")
    max_new_tokens: PositiveInt = Field(16, description="longest answer in tokens; lm_eval: the task's own")
    stop: tuple[str, ...] = Field((), description="texts that end an answer, besides the end of the turn")

    @model_validator(mode="after")
    def _measurable(self) -> TaskConfig:
        if self.type not in TASK_TYPES[self.kind]:
            raise ValueError(
                f"task {self.name}: kind '{self.kind}' does not go with type '{self.type}': "
                f"{self.kind} tasks are {', '.join(TASK_TYPES[self.kind])}"
            )
        return self

    @model_validator(mode="after")
    def _readable(self) -> TaskConfig:
        if self.format and (self.fields or self.format == "template" or self.type not in FORMAT_TYPES):
            raise ValueError(
                f"task {self.name}: format '{self.format}' gives a question and its answer, for the types "
                f"{', '.join(FORMAT_TYPES)}; columns are named by `fields`, not by format 'template' "
                "nor beside a format"
            )
        if self.type == "lm_eval" and (self.fields or self.where or self.subset or self.split):
            raise ValueError(f"task {self.name}: a task of lm_eval brings its own data and fields: leave yours out")
        for key, text in {**self.fields, "where": self.where}.items():
            if key in RESERVED_FIELDS:
                raise ValueError(f"task {self.name}: fields.{key}: the name is taken by what is measured")
            if text is not None:
                compile_template(text)
        return self


class EvaluationConfig(Section):
    """What is measured after training, on teacher, adapted, CE-only and distilled model."""

    tasks: tuple[Annotated[TaskConfig, BeforeValidator(complete)], ...] = Field(
        (), description="names of the catalog, lm_eval/NAME, or sections; empty: no evaluation"
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it is installed and can serve every model, else Transformers"
    )
    replicas: PositiveInt | None = Field(
        None, description="engines of a model, each with a worker's resources; null: one a GPU, without GPUs one"
    )
    models_at_once: PositiveInt = Field(1, description="models that are measured side by side")
    tokens_per_batch: PositiveInt = Field(8192, description="tokens that an engine works on at one time")
    bootstrap: PositiveInt = Field(2000, description="resamples for the 95 % intervals")
    min_recovery: float = Field(0.9, description="language recovery from which the claim holds")
    min_retention: float = Field(0.99, description="vision retention from which the claim holds")

    @model_validator(mode="after")
    def _tasks_differ(self) -> EvaluationConfig:
        names = [task.name for task in self.tasks]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"evaluation.tasks: names must be unique, found twice: {', '.join(twice)}")
        return self


class DemoConfig(Section):
    """The embedded default: a teacher, a student and a corpus built on this machine, offline."""

    hidden_size: PositiveInt = Field(160, description="width of the small LM")
    layers: PositiveInt = Field(4, description="its layers")
    heads: PositiveInt = Field(5, description="its attention heads (head dimension 32)")
    vocabulary: PositiveInt = Field(2048, description="byte-level BPE tokens")
    teacher_steps: PositiveInt = Field(550, description="steps of 8 × 96 tokens that train the teacher")
    adapt_steps: PositiveInt = Field(300, description="steps that turn it into a VLM, and make it forget")
    cloze_items: PositiveInt = Field(800, description="held-out four-way cloze items")
    word_items: PositiveInt = Field(500, description="held-out sentences whose next word is asked for, in a chat")
    vision_items: PositiveInt = Field(500, description="held-out image questions of each kind")


class Config(Section):
    """A complete run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="the run's folder and MLflow run name")
    output_dir: LocalPath = Field(Path("runs"), description="where runs, corpora and the MLflow store live")
    seed: int = Field(0, description="seed of everything but the corpus order")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on from the newest checkpoint; never: refuse a run that exists"
    )
    control: bool = Field(False, description="also train the CE-only control on the same data and steps")
    demo: DemoConfig | None = Field(None, description="build the embedded pair and corpus first")
    student: StudentConfig
    teacher: TeacherConfig
    corpus: CorpusConfig = CorpusConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if not self.corpus.sources and self.demo is None:
            raise ValueError("corpus.sources is empty: name at least one source")
        heavy = [s.name for s in self.corpus.sources if s.language_heavy]
        if self.corpus.sources and self.distill.policy in ("selective", "language_only") and not heavy:
            raise ValueError(
                f"distill.policy={self.distill.policy} distils language-heavy sources, and none is marked so: "
                "set `language_heavy: true` on a source, or choose distill.policy=all or none"
            )
        if self.train.rows_per_step < self.ray.num_workers:
            raise ValueError(
                f"train.rows_per_step {self.train.rows_per_step} is below ray.num_workers {self.ray.num_workers}: "
                "every worker needs a row in every step"
            )
        if self.corpus.max_length > self.train.tokens_per_micro_batch:
            raise ValueError(
                f"corpus.max_length {self.corpus.max_length} is above train.tokens_per_micro_batch "
                f"{self.train.tokens_per_micro_batch}: the longest sample must fit a micro-batch"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.output_dir / self.name

    @property
    def corpora_dir(self) -> Path:
        """Folder in which built corpora are kept."""
        return self.corpus.cache_dir or self.output_dir / ".corpora"

    def ce_weight(self, source: SourceConfig) -> float:
        """c_i of the loss: the weight of this source's cross-entropy."""
        return source.ce_weight * (self.distill.ce_on_distilled if self.distils(source) else 1.0)

    def distilled_sources(self) -> set[str]:
        """Names of the sources that the policy applies KD to."""
        return {source.name for source in self.corpus.sources if self.distils(source)}

    def training_sources(self) -> tuple[SourceConfig, ...]:
        """The sources that the policy trains on (`language_only` leaves the others out)."""
        if self.distill.policy == "language_only":
            return tuple(s for s in self.corpus.sources if s.language_heavy)
        return self.corpus.sources

    def distils(self, source: SourceConfig) -> bool:
        """Whether the policy applies KD to this source's rows."""
        if self.distill.policy == "none":
            return False
        return self.distill.policy == "all" or source.language_heavy
