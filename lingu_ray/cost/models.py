"""Student and teacher of a run on the meta device, made from their configurations, with adapters and frozen groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from lingu_ray.config import Config
from lingu_ray.distill.decoder import head_dim, inner_width, key_heads
from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.distill.lora import add_adapters
from lingu_ray.distill.new_student import student_config
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.paths import is_on_hub
from lingu_ray.runtime.models.check import check_pair
from lingu_ray.runtime.models.load import load_student_config, load_teacher_config, make_vision
from lingu_ray.runtime.models.weights import empty_model
from lingu_ray.runtime.training.frozen import frozen_in_linear
from lingu_ray.runtime.training.optimizer import freeze

_ADDED_TOKENS = 4  # of a new VLM, at most
_ANY_SIZE = 448  # pixels a side of a view, for towers that take pictures of any size


@dataclass(frozen=True)
class Tower:
    """Sizes of the vision tower. `patches`, `tokens`: patches that it reads of a view, and image tokens made of them;
    `values_per_patch`: pixel values of a patch, all colors together.
    """

    width: int
    mlp_width: int
    layers: int
    patches: int
    tokens: int
    values_per_patch: int

    @property
    def attention_flops(self) -> float:
        """Forward FLOPs of a patch's attention to all patches of its view."""
        return 4.0 * self.layers * self.width * self.patches


@dataclass(frozen=True)
class Models:
    """Student and teacher without weights. `teacher`: None without KD; `trained`: trained parameters by group."""

    student: Student
    teacher: PreTrainedModel | None
    tower: Tower
    trained: dict[str, int]

    @property
    def text(self) -> Any:
        """The configuration of the student's decoder."""
        return self.student.decoder.config

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of the student by group."""
        return {name: sum(p.numel() for _, p in named) for name, named in self.student.parameter_groups().items()}

    @property
    def layer_parameters(self) -> int:
        """Parameters of the decoder's layers, which FSDP2 shards."""
        return count(self.student.layers)

    @property
    def trained_layer_parameters(self) -> int:
        """Trained parameters among `layer_parameters`."""
        return sum(p.numel() for p in self.student.layers.parameters() if p.requires_grad)

    @property
    def held_in_bf16(self) -> list[nn.Parameter]:
        """Frozen parameters that training in bf16 holds in it: of a model, or decoder, that is published in bf16."""
        parts: tuple[Any, ...] = (self.student.model, self.student.decoder)
        return next((frozen_in_linear(part) for part in parts if part.config.dtype == torch.bfloat16), [])

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a layer."""
        return key_heads(self.text)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return head_dim(self.text)

    @property
    def mlp_width(self) -> int:
        """Width inside of the decoder's MLP."""
        return inner_width(self.text)

    @property
    def pads_with_mask(self) -> bool:
        """Whether the student's attention gets a mask where rows are padded."""
        ids_BT = torch.zeros(2, 3, dtype=torch.long)
        none_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        padded = ModelInputs(ids_BT, torch.tensor([[0, 0, 0], [1, 1, -1]]), none_BT, none_BT, {})
        arguments = forward_arguments(self.student.body, padded)
        return arguments["attention_mask"] is not None or "token_type_ids" in arguments


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def active_parameters(decoder: PreTrainedModel) -> float:
    """Parameters that compute for a token: of a mixture of experts, those of the experts that it is routed to."""
    settings: Any = decoder.config
    experts = getattr(settings, "num_experts", None) or getattr(settings, "num_local_experts", None)
    per_token = getattr(settings, "num_experts_per_tok", None) or getattr(settings, "top_k_experts", None)
    idle = 1 - per_token / experts if experts and per_token else 0
    return sum(p.numel() * (1 - idle * (".experts." in name)) for name, p in decoder.named_parameters())


def read_models(config: Config) -> Models:
    """The models that the settings name, without weights.

    Raises:
        UserError: a configuration cannot be read, or the two models are no pair.
    """
    try:
        check_pair(config)
        model, tower = _student(config)
    except UserError as error:
        hub_ids = _hub_ids(config)
        if error.__cause__ is not None and any(name in str(error) for name in hub_ids):
            raise UserError(f"{error}\n{_CURE.format(names=', '.join(hub_ids))}") from error
        raise
    student = Student(model)
    if config.train.lora is not None:
        add_adapters(student.decoder, **dict(config.train.lora))
    trained = {name: sum(p.numel() for p in group) for name, group in freeze(student, config.train).items()}
    teacher = None
    if config.uses_teacher:
        teacher = Teacher(empty_model(AutoModelForCausalLM, load_teacher_config(config.teacher))).model
    return Models(student, teacher, tower, trained)


_CURE = (
    "The estimate needs only the config.json of a model on the hub, no weights. With a network it fetches the file "
    "once. Without a network put the config.json alone of each model ({names}) into a folder of its own, and name the "
    "folders: student.path=FOLDER teacher.path=FOLDER"
)


def _hub_ids(config: Config) -> list[str]:
    """The models' paths that are hub ids."""
    tower = config.student.tower
    paths = (config.student.path, config.teacher.path, tower and tower[0])
    return [path for path in paths if path and is_on_hub(path)]


def _student(config: Config) -> tuple[PreTrainedModel, Tower]:
    settings = config.student
    if settings.from_teacher is not None:
        teacher = load_teacher_config(config.teacher)
        vocabulary = cast(int, teacher.vocab_size) + _ADDED_TOKENS
        student: Any = student_config(teacher, make_vision(settings.from_teacher), vocabulary, vocabulary - 1, None)
    else:
        student = load_student_config(settings)
    empty = empty_model(AutoModelForImageTextToText, student, settings.trust_remote_code)
    return empty.float(), tower_of(student)  # as it is trained, whatever it is published in


def tower_of(student: PreTrainedConfig) -> Tower:
    """The vision tower's sizes, under the names that the families give them in a VLM's configuration.

    Raises:
        UserError: the configuration has none of these names, as that of a convolutional tower.
    """
    try:
        return _tower(student)
    except AttributeError as error:
        raise UserError(
            f"student.path: the vision tower of {student.model_type} cannot be estimated, as its configuration names "
            f"no sizes of a transformer ({error})"
        ) from error


def _tower(student: PreTrainedConfig) -> Tower:
    vision = cast(Any, student).vision_config
    width = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL's hidden_size is the decoder's
    mlp_width = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    patch = _side(vision.patch_size)
    side = _side(getattr(vision, "image_size", None) or _ANY_SIZE) // patch
    frames = getattr(vision, "temporal_patch_size", 1)
    return Tower(
        width=width,
        mlp_width=mlp_width,
        layers=getattr(vision, "num_hidden_layers", None) or vision.depth,
        patches=side**2,
        tokens=max(1, round(side**2 / _patches_per_token(student, vision, side**2))),
        values_per_patch=3 * frames * patch**2,
    )


def _patches_per_token(student: Any, vision: Any, patches: int) -> float:
    """How many patches are merged into an image token."""
    if ratio := getattr(student, "downsample_ratio", None):  # InternVL
        return 1 / ratio**2
    resampler = getattr(student, "perceiver_config", None)  # Idefics2
    if tokens := getattr(student, "mm_tokens_per_image", None) or getattr(resampler, "resampler_n_latents", None):
        return patches / tokens
    sides = [getattr(student, name, None) for name in ("scale_factor", "spatial_merge_size", "downsample_factor")]
    sides += [getattr(vision, name, None) for name in ("spatial_merge_size", "hidden_stride")]  # the second Ovis2's
    return next((side**2 for side in sides if side), 1)


def _side(size: Any) -> int:
    """The side of a square, which configurations give as one number or as two equal ones."""
    return size if isinstance(size, int) else size[0]
