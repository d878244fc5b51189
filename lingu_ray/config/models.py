"""Settings of the two models: the student, a VLM, and the teacher, the language model that its decoder came from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from lingu_ray.config.base import Section, rule
from lingu_ray.config.facts import MAY_CHANGE, NOT_COMPARED, SEARCHABLE
from lingu_ray.paths import ModelPath

_RANDOM = {
    "image_size": 512,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layers": 12,
    "heads": 12,
    "pixel_shuffle": 4,
}
_OF_TOWER = ("patch_size", "hidden_size", "intermediate_size", "layers", "heads")


class VisionConfig(Section):
    """The vision tower and projector of a new VLM: a pretrained `tower`, or a random one of the sizes given here."""

    # on resume the tower's files are compared instead of its path
    tower: Annotated[ModelPath | None, MAY_CHANGE] = Field(
        None,
        description="a pretrained SigLIP, DINOv2 or CLIP: folder, s3://… or gs://…, or hub id; patches, widths, layers "
        "and heads are its own then; null: a random tower",
    )
    tower_revision: str | None = Field(None, description="hub revision (branch, tag or commit); null: main")
    image_size: PositiveInt | None = Field(
        None, description="side of the square input, pixels; null: the tower's own, 512 for a random one"
    )
    patch_size: PositiveInt | None = Field(None, description="side of one patch, pixels; null: 16")
    hidden_size: PositiveInt | None = Field(None, description="width of the tower; null: 768")
    intermediate_size: PositiveInt | None = Field(None, description="width of the tower's MLP; null: 3072")
    layers: PositiveInt | None = Field(None, description="number of layers; null: 12")
    heads: PositiveInt | None = Field(None, description="attention heads; they divide hidden_size; null: 12")
    pixel_shuffle: PositiveInt | None = Field(
        None, description="side of the square of patches folded into one image token; null: 4, and none with a CLIP"
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_a_random_tower(cls, given: Any) -> Any:
        """Fill in the default sizes of a random tower."""
        if not isinstance(given, dict) or given.get("tower") is not None:
            return given
        return given | {name: size for name, size in _RANDOM.items() if given.get(name) is None}

    @rule
    def _fits_together(self) -> VisionConfig:
        if self.tower is not None:
            if given := [name for name in _OF_TOWER if getattr(self, name) is not None]:
                raise ValueError(f"tower says {', '.join(given)} itself: leave them out, or leave out tower")
            return self
        if self.tower_revision is not None:
            raise ValueError("tower_revision belongs to a tower, and there is none: leave it out")
        sizes = SimpleNamespace(**{name: getattr(self, name) for name in _RANDOM})
        if sizes.image_size % (sizes.patch_size * sizes.pixel_shuffle):
            raise ValueError(
                f"image_size {sizes.image_size} must be a multiple of patch_size × pixel_shuffle "
                f"= {sizes.patch_size * sizes.pixel_shuffle}"
            )
        if sizes.hidden_size % sizes.heads:
            raise ValueError(f"hidden_size {sizes.hidden_size} must be a multiple of heads {sizes.heads}")
        return self


class StudentConfig(Section):
    """The VLM to train: an existing one (`path`), or a new one built on the teacher (`from_teacher`)."""

    # on resume the models' files are compared instead of their paths
    path: Annotated[ModelPath | None, MAY_CHANGE] = Field(
        None, description="folder, s3://… or gs://…, or hub id of a Hugging Face image-text-to-text model"
    )
    revision: str | None = Field(None, description="hub revision (branch, tag or commit); null: main")
    from_teacher: Annotated[VisionConfig | None, SEARCHABLE] = Field(
        None, description="build a new VLM: the teacher's decoder + this vision tower"
    )
    role: Annotated[Literal["adapted", "original_vlm"], MAY_CHANGE, NOT_COMPARED] = Field(
        "adapted",
        description="what `path` is. adapted: a VLM that has lost language, which is to come back; original_vlm: one "
        "before fine-tuning, measured against the plainly fine-tuned model (controls: [plain_ce]), as in the paper",
    )
    trust_remote_code: bool = Field(False, description="run model code that comes with the checkpoint")

    @rule
    def _one_origin(self) -> StudentConfig:
        if (self.path is None) == (self.from_teacher is None):
            raise ValueError("give exactly one of student.path (a VLM) and student.from_teacher (a vision config)")
        if self.path is None:
            for name in ("revision", "role", "trust_remote_code"):
                if not self.has_default(name):
                    raise ValueError(f"student.{name} is of student.path: leave it out with from_teacher")
        return self

    @property
    def tower(self) -> tuple[str, str | None] | None:
        """Path and revision of a new VLM's pretrained vision tower; None where there is none."""
        new = self.from_teacher
        return (new.tower, new.tower_revision) if new is not None and new.tower is not None else None


class TeacherConfig(Section):
    """The original, frozen, text-only LM that the student's decoder came from."""

    path: Annotated[ModelPath, MAY_CHANGE] = Field(
        description="the causal LM: a folder, a hub id, or a .gguf file in one (`folder/name.gguf`); also s3://…, gs://…"
    )
    revision: str | None = Field(None, description="hub revision (branch, tag or commit); null: main")
    placement: Annotated[Literal["actor", "node", "in_process"], MAY_CHANGE] = Field(
        "actor",
        description="actor: a Ray actor for each worker, on its node; node: one for all workers of a node, which takes "
        "memory once, and answers one after another; in_process: inside the worker",
    )
    transport: Annotated[Literal["auto", "object_store", "cuda_ipc", "nixl"], MAY_CHANGE] = Field(
        "auto",
        description="how the KV reaches the actor. object_store: shared memory; "
        "cuda_ipc: shared memory of one GPU, no copy; nixl: memory to memory, by NIXL; "
        "auto: cuda_ipc on one GPU, where that works, else object_store",
    )
    context: Annotated[Literal["shared_kv", "prompt_text"], SEARCHABLE] = Field(
        "shared_kv",
        description="shared_kv: the teacher continues from the student's KV; "
        "prompt_text: an ablation, it reads the prompt's text without the images",
    )
    scope: Annotated[Literal["full", "visual"], SEARCHABLE] = Field(
        "full", description="positions whose KV the teacher gets. full: the whole prompt; visual: image tokens only"
    )
    earlier_turns: Annotated[Literal["student", "teacher"], SEARCHABLE] = Field(
        "student",
        description="whose KV stands for a conversation's earlier answers where a later one is judged. student: they "
        "are prompt, as in generation; teacher: it computes them itself, once (scope full)",
    )
    look_ahead: Annotated[int | None, MAY_CHANGE] = Field(
        None,
        ge=0,
        description="calls of the teacher, of a micro-batch each, the student may run ahead while it answers; "
        "null: 1 for an actor on GPUs, else 0: on CPUs both share the cores, and each one ahead holds its activations",
    )
    micro_batches_per_call: Annotated[int, MAY_CHANGE] = Field(
        1,
        ge=1,
        description="micro-batches about which the teacher is asked in one call: fewer and fuller passes of it, while "
        "the activations of all of them are held",
    )
    max_restarts: Annotated[int, MAY_CHANGE] = Field(3, ge=0, description="times a dead teacher actor is replaced")

    @model_validator(mode="before")
    @classmethod
    def _one_path(cls, given: Any) -> Any:
        """Join `path` with `gguf_file`, a setting of earlier versions."""
        if not isinstance(given, dict) or "gguf_file" not in given:
            return given
        file = given["gguf_file"]
        rest = {name: value for name, value in given.items() if name != "gguf_file"}
        return rest | {"path": f"{given.get('path')}/{file}"} if file else rest

    @rule
    def _sent_to_an_actor(self) -> TeacherConfig:
        if self.placement != "actor" and self.transport not in ("auto", "object_store"):
            why = "in_process has no actor" if self.placement == "in_process" else "an actor of a node serves several"
            raise ValueError(
                f"teacher.transport={self.transport} needs a teacher actor for each worker, and {why}: "
                "set teacher.placement=actor, or leave teacher.transport out"
            )
        return self
