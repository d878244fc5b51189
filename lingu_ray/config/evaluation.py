"""Settings of the evaluation: tasks, and the engines that answer them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from lingu_ray.config.base import NAME, Section, Several, duplicates, rule
from lingu_ray.config.corpus import Format
from lingu_ray.config.task_catalog import complete
from lingu_ray.config.task_templates import compile_template
from lingu_ray.config.tracking import check_name
from lingu_ray.paths import TaskPath

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
FIELDS = {
    ("language", "multiple_choice"): ("query", "choices", "gold", "context_options", "continuation"),
    ("language", "last_word"): ("context", "continuation"),
    ("language", "perplexity"): ("text", "context", "continuation"),
    ("language", "exact_match"): ("question", "answer"),
    ("vision", "multiple_choice"): ("question", "choices", "gold", "image"),
    ("vision", "mme"): ("question", "gold", "category", "group", "image"),
}
"""The fields of an item that each type of task reads."""
ANSWERED_FIELDS = ("question", "answer", "image")
"""The fields that all other types read."""
CLUSTER = "cluster"
"""An optional field of every type but `mme`, which has groups: the bootstrap draws items with equal values together."""
KNOWN_FIELDS = frozenset((*(field for fields in (*FIELDS.values(), ANSWERED_FIELDS) for field in fields), CLUSTER))
"""The fields that any type reads; a task's other `fields` become columns of their own."""
SCORED_TYPES = ("multiple_choice", "last_word", "perplexity")
"""Types that score texts in a language task; the other types generate answers."""
RESERVED_FIELDS = (
    "item",
    "logliks",
    "tokens",
    "greedy",
    "prediction",
    "answers",
    "lengths",
    "sample",
    "cut_to",
    "cut_off",
)
"""Columns of a task's measured items, besides those of `KNOWN_FIELDS`."""


class TaskConfig(Section):
    """One evaluation task: where its items come from, what they ask, and how the answers are judged."""

    name: str = Field(pattern=NAME, description="unique name; results carry it")
    kind: Literal["language", "vision"] = Field(description="language: counts for recovery; vision: for retention")
    type: TaskType = Field(description="how answers are judged; lm_eval: by a task of lm-evaluation-harness")
    path: TaskPath = Field(
        description="file, glob, folder (also `datasets.save_to_disk`), local, s3://…, gs://…; or hub id of a dataset; "
        "lm_eval: the task's name, or its YAML file"
    )
    revision: str | None = Field(None, min_length=1, description="hub: branch, tag or commit; null: main")
    subset: str | None = Field(None, description="hub: configuration name")
    split: str | None = Field(
        None, description="hub, save_to_disk, a folder of files that are named by splits: split, such as test"
    )
    where: str | None = Field(
        None, description="rows to take: a column or a Jinja {{expression}} that is true or false"
    )
    format: Format | None = Field(
        None, description="read rows as the corpus does, in one of its formats; the last question is asked"
    )
    fields: dict[str, str] = Field(
        {}, description="an item's field: a column, or a Jinja template over the columns; empty: the row has the fields"
    )
    limit: PositiveInt | None = Field(
        None,
        description="use the first N items only: of a set in order of subjects (MMLU), a few of them; null: all",
    )
    metric: Literal["acc", "acc_norm"] | None = Field(
        None,
        description="multiple_choice of language: acc_norm chooses by likelihood per character; null: acc. "
        "The catalog has what lm-evaluation-harness reports; the other is kept beside it",
    )
    in_mean: bool = Field(True, description="counts in mean recovery (language) or retention (vision); shown anyway")
    delimiter: str = Field(" ", description="text between a query or context and the continuation that is scored")
    max_new_tokens: PositiveInt = Field(16, description="longest answer in tokens; lm_eval: the task's own")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="texts that end an answer, besides the end of the turn; none empty"
    )

    @rule
    def _measurable(self) -> TaskConfig:
        if self.type not in TASK_TYPES[self.kind]:
            raise ValueError(
                f"task {self.name}: kind '{self.kind}' does not go with type '{self.type}': "
                f"{self.kind} tasks are {', '.join(TASK_TYPES[self.kind])}"
            )
        if self.metric and (self.kind, self.type) != ("language", "multiple_choice"):
            raise ValueError(
                f"task {self.name}: metric '{self.metric}' is of kind 'language' with type 'multiple_choice'; "
                "other types have one metric: leave it out"
            )
        return self

    @rule
    def _read(self) -> TaskConfig:
        """Refuse settings that the type does not read: they would be ignored in silence."""
        of = f"type '{self.type}' of kind '{self.kind}'"
        generates = not (self.kind == "language" and self.type in (*SCORED_TYPES, "lm_eval"))
        unread = ["delimiter"] if generates else ["max_new_tokens", "stop"]
        unread += ["delimiter"] if self.type == "lm_eval" else []
        for key in unread:
            if not self.has_default(key):
                does = "has answers generated" if generates else "scores texts"
                why = "brings its own" if self.type == "lm_eval" else f"does not read it: it {does}"
                raise ValueError(f"task {self.name}: {key}: {of} {why}; leave it out")
        asked = (*FIELDS.get((self.kind, self.type), ANSWERED_FIELDS), *([] if self.type == "mme" else [CLUSTER]))
        if ignored := sorted(KNOWN_FIELDS.intersection(self.fields) - {*asked}):
            raise ValueError(
                f"task {self.name}: fields.{ignored[0]}: {of} does not ask for it, but for {', '.join(asked)}: leave "
                "it out, or write it into one of these by a template"
            )
        return self

    @rule
    def _readable(self) -> TaskConfig:
        if self.format and (self.fields or self.format == "template" or self.type not in FORMAT_TYPES):
            raise ValueError(
                f"task {self.name}: format '{self.format}' gives a question and its answer, for the types "
                f"{', '.join(FORMAT_TYPES)}; columns are named by `fields`, not by format 'template' "
                "nor beside a format"
            )
        if self.type == "lm_eval" and (self.fields or self.where or self.revision or self.subset or self.split):
            raise ValueError(f"task {self.name}: a task of lm_eval brings its own data and fields: leave yours out")
        for key in self.fields:
            check_name(f"task {self.name}: fields", key)
        for key, text in {**self.fields, "where": self.where}.items():
            if key in RESERVED_FIELDS:
                raise ValueError(f"task {self.name}: fields.{key}: the name is taken by what is measured")
            if text is not None:
                compile_template(text)
        return self


class EvaluationConfig(Section):
    """What is measured after training, on teacher, student, controls and distilled model."""

    tasks: Several[Annotated[TaskConfig, BeforeValidator(complete)]] = Field(
        (), description="names of the catalog, lm_eval/NAME, or sections; empty: no evaluation"
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM if it is installed and supports every model, else Transformers"
    )
    replicas: PositiveInt | None = Field(
        None,
        description="engines per model, each with a worker's resources; null: one per GPU of the cluster, or of a "
        "trial's share of it, divided by models_at_once; without GPUs one",
    )
    models_at_once: PositiveInt = Field(1, description="models measured side by side")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of weights and activations in the engine, alike for all models. bf16 is faster and needs half the "
        "memory; its rounding is noise in every item",
    )
    tokens_per_batch: PositiveInt = Field(8192, description="most tokens of one batch of an engine")
    bootstrap: int = Field(2000, ge=50, description="resamples of the bootstrap; fewer give no 95 % interval")
    recovery_in: Literal["metric", "nats"] = Field(
        "metric",
        description="what mean recovery and verdict take of a language task: its metric, as in published tables, or "
        "the nats of its right answers where it has likelihoods (last_word, multiple_choice), which resolve smaller "
        "losses. Both are shown; choose before measuring",
    )
    blind: bool = Field(
        False,
        description="ask each vision task without its images, too: what of its score language alone gives away; "
        "shown beside it, in no mean",
    )
    min_recovery: float = Field(
        0.9,
        ge=0,
        le=2,
        description="share of the lost language that the claim needs back, in the mean; tasks below it are named",
    )
    min_retention: float = Field(
        0.99, ge=0, le=2, description="share of vision that the claim needs kept, in the mean; tasks below it are named"
    )

    @rule
    def _tasks_differ(self) -> EvaluationConfig:
        if repeated := duplicates([task.name for task in self.tasks]):
            raise ValueError(f"evaluation.tasks: names must be unique, found twice: {', '.join(repeated)}")
        return self
