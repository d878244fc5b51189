"""What can be added (docs/extending.md) is known everywhere: to settings, references, model cards and the guide."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import pytest
import reference_method
from families import FAMILIES

from lingu_ray.config import TASK_TYPES, DistillConfig
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.report.card_settings import DIVERGENCES, POLICIES

GUIDE = (Path(__file__).parents[2] / "docs/guide.md").read_text("utf-8")
CHOICES = {name: get_args(DistillConfig.model_fields[name].annotation) for name in ("divergence", "policy")}


@pytest.mark.parametrize("names", [FORMATS, [t for types in TASK_TYPES.values() for t in types if t != "lm_eval"]])
def test_the_guide_has_a_row_for_each(names: Collection[str]):
    """Every data format and every task type stands in the first column of a table of the guide."""
    cells = re.findall(r"^\| (`.+?) \|", GUIDE, re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert set(names) <= listed


def test_every_divergence_has_a_reference_and_words():
    """The setting's values are those of the slow reference and of the model card; the guide names them."""
    names = set(CHOICES["divergence"])
    assert names == set(reference_method.DIVERGENCES) == set(DIVERGENCES)
    row = next(line for line in GUIDE.splitlines() if "another divergence" in line)
    assert all(name in row for name in names - {DistillConfig().divergence})


def test_every_policy_has_words():
    """A model card can say each policy."""
    assert set(CHOICES["policy"]) == set(POLICIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_guide_names_every_family(name: str):
    """A family that is tested is one that users are told of."""
    plain = re.sub(r"[^a-z0-9]", "", GUIDE.lower())
    assert name.replace("_", "") in plain
