"""Merge a VLM's decoder with the LM it came from: the baseline that needs no training.

Decoder, embeddings and head become weight · teacher + (1 − weight) · student, computed in float32 and saved in the
student's precision. Vision tower, projector and the tokens that the LM does not have stay the student's.

Then measure it beside the others, for example

    python -m lingu_ray.merge teacher=models/lm student=models/vlm out=models/merged weight=0.5
    python -m lingu_ray.evaluate teacher=models/lm adapted=models/vlm distilled=runs/mine/export \\
        merged=models/merged tasks=tasks.yaml out=measured
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import torch
from pydantic import Field, field_validator
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from lingu_ray.atomic import require_new_folder
from lingu_ray.config import Section, Several, StudentConfig, TeacherConfig
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.distill.interpolate import common_ids, interpolate_
from lingu_ray.distill.pair import check_text_only, check_tokenizers, compare_decoders
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import LocalPath, ModelPath
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import (
    load_config,
    load_processor,
    load_student,
    load_teacher,
    published_dtype,
    teacher_tokens,
)
from lingu_ray.shell import shell_word


class MergeConfig(Section):
    """Settings of the command."""

    teacher: ModelPath = Field(description="the original text-only LM: a folder, a hub id or a .gguf file")
    student: ModelPath = Field(description="the VLM that came from it: a folder or a hub id")
    out: LocalPath = Field(description="a new folder, which gets a model of the student's class with its processor")
    weight: Several[float] = Field(
        (0.5,),
        description="the teacher's share of the decoder, 0 to 1; several, as in 0.25,0.5, make the folders OUT-0.25, "
        "OUT-0.5",
    )

    @field_validator("weight")
    @classmethod
    def _are_shares(cls, weight: tuple[float, ...]) -> tuple[float, ...]:
        if not weight or not all(0 <= share <= 1 for share in weight) or len(set(weight)) < len(weight):
            raise ValueError("a number from 0 to 1 is wanted, or several different ones with commas between")
        return weight


HELP = Help("python -m lingu_ray.merge teacher=MODEL student=MODEL out=DIR [weight=0.5]", __doc__, MergeConfig)


def merge(teacher: str, student: str, out: Path, weights: list[float]) -> list[Path]:
    """Write one merged model a weight; returns their folders: `out`, or `out-WEIGHT` where there are several.

    Raises:
        UserError: a folder is there already; the two do not fit; one cannot be loaded.
    """
    folders = [out if len(weights) == 1 else out.with_name(f"{out.name}-{weight:g}") for weight in weights]
    for folder in folders:
        require_new_folder(folder)
    student_settings, teacher_settings = StudentConfig(path=student), TeacherConfig(path=teacher)
    dtype = _check_configurations(student_settings, teacher_settings)
    processor = load_processor(student_settings)
    teacher_tokenizer, vocabulary = teacher_tokens(teacher_settings)
    check_tokenizers(processor.tokenizer, teacher_tokenizer)
    lm = load_teacher(teacher_settings, torch.float32, torch.device("cpu"), vocabulary).model
    for weight, folder in zip(weights, folders, strict=True):
        vlm = load_student(student_settings)  # loaded again for each weight: an export changes its dtype
        common_V = common_ids(processor.tokenizer, teacher_tokenizer, _rows(vlm), _rows(lm))
        interpolate_(vlm, lm, weight, common_V)
        export_model(vlm, processor, dtype, folder)
    return folders


def _check_configurations(student: StudentConfig, teacher: TeacherConfig) -> torch.dtype:
    """Refuse models that are not a pair, before weights are read; returns the dtype of the student's weights."""
    lm = load_config(teacher.path, None, False, "teacher")
    vlm = load_config(cast(str, student.path), None, False, "student")
    check_text_only(lm, f"teacher={teacher.path}")
    if not hasattr(vlm, "vision_config"):
        raise UserError(f"student={student.path}: {vlm.model_type} has no vision_config, so it is no VLM")
    compare_decoders(vlm.get_text_config(decoder=True), lm)
    return published_dtype(vlm, cast(str, student.path), "student")


def _rows(model: PreTrainedModel) -> int:
    return cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can fix."""
    config = settings_alone(arguments, HELP)
    if not sys.stderr.isatty():
        disable_progress_bar()  # Transformers' own bars
    for folder in merge(config.teacher, config.student, config.out, list(config.weight)):
        print(f"wrote {shell_word(folder)}")


if __name__ == "__main__":
    run_command(main)
