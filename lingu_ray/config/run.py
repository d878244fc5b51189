"""The settings of a run: one `Config`, a tree of sections, read from a YAML file and dotted `key=value` overrides.

Every field carries its meaning as a description, which `--help` prints. Whatever can be wrong in the settings alone is
refused here, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from lingu_ray.config.align import AlignConfig
from lingu_ray.config.base import FolderName, Section, Several, rule
from lingu_ray.config.cluster import RayConfig
from lingu_ray.config.corpus import CorpusConfig, SourceConfig
from lingu_ray.config.demo import DemoConfig
from lingu_ray.config.distill import DistillConfig
from lingu_ray.config.evaluation import EvaluationConfig
from lingu_ray.config.facts import MAY_CHANGE, NOT_COMPARED, SEARCHABLE
from lingu_ray.config.models import StudentConfig, TeacherConfig
from lingu_ray.config.tracking import TrackingConfig
from lingu_ray.config.train import TrainConfig
from lingu_ray.paths import OutputFolder
from lingu_ray.storage import below, place, working_folder

ControlName = Literal["same_ce", "plain_ce"]
CONTROLS: tuple[str, str] = get_args(ControlName)
"""Names of the controls: runs beside a run, without the teacher."""
_OF_KD = ("divergence", "beta", "top_k", "temperature", "kd_normalizer")
"""Of `distill`, what only the KD term reads."""


class Config(Section):
    """A complete run."""

    name: Annotated[FolderName, NOT_COMPARED] = Field(description="the run's folder")
    output_dir: Annotated[OutputFolder, MAY_CHANGE, NOT_COMPARED] = Field(
        Path("runs"), description="folder of runs, corpora and the MLflow store; a bucket needs tracking.uri"
    )
    seed: int = Field(0, ge=0, description="seed of everything but the corpus order")
    resume: Annotated[Literal["auto", "never"], MAY_CHANGE, NOT_COMPARED] = Field(
        "auto", description="auto: resume from the newest checkpoint; never: refuse a run that was trained"
    )
    controls: Annotated[Several[ControlName], MAY_CHANGE, NOT_COMPARED] = Field(
        (),
        description="also trained, on the same data and steps without the teacher. same_ce: the run with a KD weight "
        "of 0; plain_ce: plain cross-entropy, weighted as the sources say",
    )
    demo: Annotated[DemoConfig | None, MAY_CHANGE, NOT_COMPARED] = Field(
        None, description="build the embedded pair and corpus first; null: off"
    )
    student: StudentConfig
    teacher: TeacherConfig
    corpus: CorpusConfig = CorpusConfig()
    align: Annotated[AlignConfig | None, SEARCHABLE] = Field(
        None,
        description="before training, align a new projector on the corpus's pictures; null: off",
    )
    distill: Annotated[DistillConfig, SEARCHABLE] = DistillConfig()
    train: Annotated[TrainConfig, SEARCHABLE] = TrainConfig()
    ray: Annotated[RayConfig, MAY_CHANGE] = RayConfig()
    tracking: Annotated[TrackingConfig, MAY_CHANGE, NOT_COMPARED] = TrackingConfig()
    evaluation: Annotated[EvaluationConfig, MAY_CHANGE] = EvaluationConfig()

    @rule
    def _fits_together(self) -> Config:
        if not self.corpus.sources and self.demo is None:
            raise ValueError("corpus.sources is empty: name at least one source")
        heavy = [s.name for s in self.corpus.sources if s.language_heavy]
        if self.corpus.sources and self.distill.policy in ("selective", "language_only") and not heavy:
            raise ValueError(
                f"distill.policy={self.distill.policy} distills language-heavy sources, and no source is marked so: "
                "set `language_heavy: true` on a source, or choose distill.policy=all or none"
            )
        if self.train.rows_per_step < self.ray.max_workers:
            raise ValueError(
                f"train.rows_per_step {self.train.rows_per_step} is below ray.num_workers {self.ray.max_workers}: "
                "every worker needs a row in every step"
            )
        if self.corpus.max_length > self.train.tokens_per_micro_batch:
            raise ValueError(
                f"corpus.max_length {self.corpus.max_length} is above train.tokens_per_micro_batch "
                f"{self.train.tokens_per_micro_batch}: the longest sample must fit a micro-batch"
            )
        return self

    @rule
    def _gpus_are_used(self) -> Config:
        if self.ray.shares_gpus and self.train.parallelism == "fsdp2":
            raise ValueError(
                f"train.parallelism=fsdp2 needs a GPU for each worker (NCCL), and with "
                f"ray.gpus_per_worker={self.ray.gpus_per_worker:g} workers share one: set it to 1, or "
                "train.parallelism=ddp"
            )
        if self.ray.gpus_per_worker == 2 and self.teacher.placement == "in_process":
            raise ValueError(
                "ray.gpus_per_worker=2 gives the second GPU to a teacher actor, and teacher.placement=in_process has "
                "none: set teacher.placement=actor, or ray.gpus_per_worker=1"
            )
        return self

    @rule
    def _there_is_a_loss(self) -> Config:
        sources = self.training_sources()
        no_ce = self.distill.w_ce.always_zero or (sources and not any(self.ce_weight(source) for source in sources))
        no_kd = not self.uses_teacher or (sources and not self.distilled_sources())
        if no_ce and no_kd:
            raise ValueError(
                "the loss is 0 in every step: neither cross-entropy (distill.w_ce, ce_on_distilled, the sources' "
                "ce_weight) nor KD (distill.policy, w_kd, the sources' kd_weight) has a weight above 0"
            )
        if "same_ce" in self.controls and self.uses_teacher and no_ce:
            raise ValueError(
                "controls: same_ce is the run without its teacher, and this run has no cross-entropy besides: "
                "give controls: [plain_ce]"
            )
        return self

    @rule
    def _demo_has_a_folder(self) -> Config:
        if self.demo is not None and isinstance(self.output_dir, str):
            raise ValueError(
                f"output_dir={self.output_dir}: the demo makes its models and data in a folder beside the run: give "
                "output_dir a folder; runs of models and data that exist take buckets"
            )
        return self

    @property
    def run_place(self) -> Path | str:
        """Where the results of this run go: a folder, or a location in object storage."""
        return below(self.output_dir, self.name)

    @property
    def run_dir(self) -> Path:
        """The run's folder; for a run in object storage, the driver's working folder."""
        return working_folder(self.run_place)

    @property
    def corpora_dir(self) -> Path | str:
        """Folder in which built corpora are kept: a path, or a location in object storage."""
        return place(self.corpus.cache_dir) if self.corpus.cache_dir else below(self.output_dir, ".corpora")

    @property
    def uses_teacher(self) -> bool:
        """Whether there is a KD term; without one no teacher is loaded."""
        return self.distill.policy != "none" and not self.distill.w_kd.always_zero

    def without_effect(self) -> Iterator[str]:
        """A sentence for each setting that was given and has no effect, with the setting that it needs; none without a
        KD term.

        Such settings are not refused: the same file may be run with the other setting.
        """
        if not self.uses_teacher:
            return
        for key, (section, needs) in self.unread().items():
            if not section.has_default(key.rpartition(".")[2]):
                yield f"{key} {needs}"

    def unread(self) -> dict[str, tuple[Section, str]]:
        """Settings of the method that have no effect, whatever they are: the section of each, and what it needs."""
        distill, found = self.distill, dict[str, tuple[Section, str]]()
        if not distill.on_policy:
            needs = "needs a distill.on_policy above 0"
            found |= {f"distill.{name}": (distill, needs) for name in ("sampled_tokens", "sampling_temperature")}
        if distill.divergence != "jsd":
            found["distill.beta"] = (distill, f"is read by distill.divergence=jsd, not by {distill.divergence}")
        for source in self.corpus.sources:
            if not self.distills(source) and source.kd_weight:
                needs = "needs language_heavy: true, or distill.policy=all"
                found[f"corpus.sources.{source.name}.kd_weight"] = (source, needs)
        if not self.uses_teacher:
            needs = "needs a teacher: distill.w_kd above 0, and another distill.policy than none"
            found |= {f"distill.{name}": (distill, needs) for name in _OF_KD}
            found |= {f"teacher.{name}": (self.teacher, needs) for name in ("context", "scope", "earlier_turns")}
        if distill.policy == "none":
            needs = "needs another distill.policy than none"
            found |= {f"distill.{name}": (distill, needs) for name in ("w_kd", "ce_on_distilled")}
        return found

    def ce_weight(self, source: SourceConfig) -> float:
        """c_i of the loss: the weight of this source's cross-entropy."""
        return source.ce_weight * (self.distill.ce_on_distilled if self.distills(source) else 1.0)

    def distilled_sources(self) -> set[str]:
        """Names of the sources that the policy applies KD to."""
        return {source.name for source in self.corpus.sources if self.distills(source)}

    def training_sources(self) -> tuple[SourceConfig, ...]:
        """The sources that the policy trains on (`language_only` leaves the others out)."""
        if self.distill.policy == "language_only":
            return tuple(s for s in self.corpus.sources if s.language_heavy)
        return self.corpus.sources

    def distills(self, source: SourceConfig) -> bool:
        """Whether KD applies to this source's rows: the policy chooses it, and its `kd_weight` is not 0."""
        if self.distill.policy == "none" or not source.kd_weight:
            return False
        return self.distill.policy == "all" or source.language_heavy
