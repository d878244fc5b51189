"""Settings that have a new name, or another one elsewhere: it is refused, and the message gives the right one."""

from __future__ import annotations

from pydantic import BaseModel

from lingu_ray.config.tree import section_at

RENAMED = {
    "control": "controls",
    "corpus.sources.*.form": "corpus.sources.*.format",
    "evaluation.tasks.*.form": "evaluation.tasks.*.format",
}
"""Old dotted name: new one; `*` stands for the items of a list."""

ELSEWHERE = {
    "lr": "train.learning_rates",
    "learning_rate": "train.learning_rates",
    "batch_size": "train.rows_per_step",
    "epochs": "train.steps",
    "max_steps": "train.steps",
    "gradient_accumulation_steps": "train.tokens_per_micro_batch",
    "bf16": "train.precision",
}
"""What other trainers call a setting: its dotted name here. By its letters `lr` comes nearest to `lora`."""


def new_name(section: type[BaseModel] | None, name: str) -> str | None:
    """What the setting `name` of a section is called now: a name in the same section, or a dotted one elsewhere.

    None where the name is no old one. The section counts, wherever a command's settings hold it.
    """
    for old, new in RENAMED.items():
        (old_section, _, old_name), (new_section, _, own_name) = old.rpartition("."), new.rpartition(".")
        if old_name == name and _section(old_section) is section:
            return own_name if new_section == old_section else new
    return None


def _section(dotted: str) -> type[BaseModel] | None:
    return section_at(tuple(0 if part == "*" else part for part in dotted.split(".") if part))
