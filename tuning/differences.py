"""Which settings differ between runs, in as few lines as say it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.config.facts import NOT_COMPARED
from lingu_ray.config.tree import has

Flat = dict[str, str]
"""Settings by dotted key (`config.flat`)."""

NONE, NULL = "–", "null"
_SOURCES, _TASKS, _EVALUATION = "corpus.sources", "evaluation.tasks", "evaluation"


@dataclass(frozen=True)
class Row:
    """Settings that have these values in the runs; several keys where all have the same ones."""

    keys: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def apart(self) -> int | None:
        """The one run that has another value, where all others have the same."""
        (common, count), *_ = Counter(self.values).most_common()
        if count < len(self.values) - 1:
            return None
        return next(i for i, value in enumerate(self.values) if value != common)


def differing_settings(runs: list[Flat]) -> list[Row]:
    """The settings that are not the same in all runs; sources and evaluation are one setting each."""
    compared = [{key: value for key, value in run.items() if not has(NOT_COMPARED, key)} for run in runs]
    compared = fold_list(compared, _SOURCES, SourceConfig.model_fields)
    compared = fold_list(compared, _TASKS, TaskConfig.model_fields)
    compared = fold_section(compared, _EVALUATION)
    for key in sorted({key for run in compared for key, value in run.items() if value == NULL}):
        compared = fold_section(compared, key)
    by_values: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for run in compared for key in run):
        by_values.setdefault(tuple(run.get(key, NONE) for run in compared), []).append(key)
    return [Row(tuple(keys), values) for values, keys in by_values.items() if len(set(values)) > 1]


def fold_list(runs: list[Flat], prefix: str, fields: Iterable[str]) -> list[Flat]:
    """The runs with one setting in place of all of a list: its items by name, with what differs between the runs.

    Args:
        runs: settings by run.
        prefix: the list's key.
        fields: what an item has; names of items may hold dots.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\.(?P<item>.+?)\.(?P<field>({'|'.join(fields)})(\..+)?)")
    items: list[dict[str, Flat]] = []
    for run in runs:
        found: dict[str, Flat] = {}
        for match, value in ((pattern.fullmatch(key), value) for key, value in run.items()):
            if match:
                found.setdefault(match["item"], {})[match["field"]] = value
        items.append(found)
    folded = []
    for run, own in zip(runs, items, strict=True):
        words = []
        for name, item in own.items():
            details = _details(item, [other[name] for other in items if name in other])
            words.append(f"{name} ({details})" if details else name)
        rest = {key: value for key, value in run.items() if not pattern.fullmatch(key)}
        folded.append(rest | ({prefix: ", ".join(words)} if words else {}))
    return folded


def fold_section(runs: list[Flat], prefix: str) -> list[Flat]:
    """The runs with one setting in place of all of a section: those of its settings that differ between the runs."""
    begin = f"{prefix}."
    sections = [{k.removeprefix(begin): v for k, v in run.items() if k.startswith(begin)} for run in runs]
    if not any(sections):
        return runs
    folded = []
    for run, own in zip(runs, sections, strict=True):
        rest = {key: value for key, value in run.items() if not key.startswith(begin)}
        folded.append(rest | ({prefix: _details(own, sections)} if own else {}))
    return folded


def _details(own: Flat, all_of_them: list[Flat]) -> str:
    """The settings of one section that another one does not have, or has otherwise."""
    differing = (key for key, value in own.items() if any(other.get(key) != value for other in all_of_them))
    return ", ".join(f"{key}={own[key]}" for key in differing)
