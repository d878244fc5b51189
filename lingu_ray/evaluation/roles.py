"""The models that an evaluation compares: their roles in the method, and which model of a run has which.

| role | is |
|---|---|
| `teacher` | the original, text-only language model |
| `original_vlm` | a VLM before any fine-tuning, where the claim is about what fine-tuning it costs (as in the paper) |
| `fine_tuned` | the plainly fine-tuned model that the distilled one takes the place of |
| `adapted` | a VLM that has lost language already, and that the distilled model was trained from |
| `same_ce`, `plain_ce` | controls, trained from the same model on the same data and steps without the teacher |
| `distilled` | the model of the run |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lingu_ray.config import CONTROLS, Config
from lingu_ray.paths import at_revision

ROLES = ("teacher", "original_vlm", "fine_tuned", "adapted", *CONTROLS, "distilled")
TEACHER, ORIGINAL_VLM, FINE_TUNED, ADAPTED, SAME_CE, PLAIN_CE, DISTILLED = ROLES


@dataclass(frozen=True)
class References:
    """The two models, by name, that recovery and retention are measured against.

    `baseline`: what has lost language, and has the vision that is to be kept; `original`: what had the language.
    """

    original: str = TEACHER
    baseline: str = ADAPTED

    def __iter__(self) -> Iterator[str]:
        return iter((self.original, self.baseline))

    @property
    def formulas(self) -> dict[str, str]:
        """How both are computed, in words."""
        lost = f"({self.original} − {self.baseline})"
        return {
            "recovery": f"({DISTILLED} − {self.baseline}) / {lost}",
            "retention": f"{DISTILLED} / {self.baseline}",
        }


OF_THE_TEACHER = References()
OF_THE_PAPER = References(ORIGINAL_VLM, FINE_TUNED)
OF_A_NEW_VLM = References(TEACHER, FINE_TUNED)


def references_among(models: Iterable[str]) -> References:
    """The references that are among these models; where no two are, those that some of them are of."""
    there = set(models)
    for pair in (OF_THE_TEACHER, OF_THE_PAPER, OF_A_NEW_VLM):
        if there.issuperset(pair):
            return pair
    return OF_THE_PAPER if ADAPTED not in there and there.intersection(OF_THE_PAPER) else OF_THE_TEACHER


def compared_with(models: Iterable[str], references: References) -> list[str]:
    """Those of the models that the distilled one, where it is among them, is compared with: all but the original."""
    there = list(models)
    return [model for model in there if model not in (references.original, DISTILLED)] if DISTILLED in there else []


def in_order(models: Iterable[str]) -> list[str]:
    """Names of models, each once: the roles in their order, then others by name."""
    found = set(models)
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))


def compared_models(config: Config, trained: Path | str, controls: Mapping[str, Path | str]) -> dict[str, str]:
    """The models that a run's evaluation compares, by role: path, hub id or GGUF file.

    Args:
        config: the run's settings.
        trained: its model.
        controls: the models of its controls, by the controls' names.
    """
    beside = {control_role(config, name): str(path) for name, path in controls.items()}
    return {**given_models(config), trained_role(config): str(trained), **beside}


def given_models(config: Config) -> dict[str, str]:
    """The models that the settings name, by role: the teacher, and the student where it is no new model.

    Each of the revision that the run has of it.
    """
    teacher, student = config.teacher, config.student
    vlm = {} if student.path is None else {student.role: at_revision(student.path, student.revision)}
    return {TEACHER: at_revision(teacher.path, teacher.revision), **vlm}


def trained_role(config: Config) -> str:
    """The role of the model that a run, or a control, trains."""
    if config.uses_teacher:
        return DISTILLED
    return control_role(config, PLAIN_CE if config.distill.policy == "none" else SAME_CE)


def control_role(config: Config, name: str) -> str:
    """The role of a control's model: its name, or `fine_tuned` where plain cross-entropy is what is compared with."""
    return FINE_TUNED if name == PLAIN_CE and not has_adapted(config) else name


def has_adapted(config: Config) -> bool:
    """Whether the student has lost language before the run; else recovery is measured against plain fine-tuning."""
    return config.student.path is not None and config.student.role == ADAPTED
