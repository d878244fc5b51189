"""Wrong names of settings, from earlier versions or other trainers, for messages that give the right name."""

from __future__ import annotations

from pydantic import BaseModel

from lingu_ray.config.tree import section_at

RENAMED = {
    "control": "controls",
    "corpus.sources.*.form": "corpus.sources.*.format",
    "evaluation.tasks.*.form": "evaluation.tasks.*.format",
}
"""New dotted names by old ones; `*` stands for the items of a list."""

ELSEWHERE = {
    "lr": "train.learning_rates",
    "learning_rate": "train.learning_rates",
    "batch_size": "train.rows_per_step",
    "epochs": "train.steps",
    "max_steps": "train.steps",
    "gradient_accumulation_steps": "train.tokens_per_micro_batch",
    "bf16": "train.precision",
}
"""Dotted names here, by the names that other trainers use. By spelling alone, `lr` would be nearest to `lora`."""


def new_name(section: type[BaseModel] | None, name: str) -> str | None:
    """The new name of an old setting of a section: a name in the same section, or a dotted one; None if it is not old.

    The section decides, not the key: commands may hold it elsewhere in their settings.
    """
    for old, new in RENAMED.items():
        (old_section, _, old_name), (new_section, _, own_name) = old.rpartition("."), new.rpartition(".")
        if old_name == name and _section(old_section) is section:
            return own_name if new_section == old_section else new
    return None


def _section(dotted: str) -> type[BaseModel] | None:
    return section_at(tuple(0 if part == "*" else part for part in dotted.split(".") if part))
