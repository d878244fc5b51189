"""What is true of settings beside their types: said at each, and the same as what runs, corpora and sweeps rely on."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from lingu_ray.config import Config, CorpusConfig, SourceConfig
from lingu_ray.config.differences import differences
from lingu_ray.config.facts import (
    MAY_CHANGE,
    NOT_COMPARED,
    NOT_IN_FINGERPRINT,
    SAME_HELD_OUT,
    SEARCHABLE,
    Fact,
    fields_with,
)
from lingu_ray.config.tree import fields, has, settings_with
from tuning.space import searchable

NO_RESULT = "tokens_per_micro_batch packing attention gradient_checkpointing parallelism compile"
OCCASIONS = "validate_every sample_every samples checkpoint_every checkpoint keep_last max_bad_steps"
TRUTH: dict[Fact, set[str]] = {
    MAY_CHANGE: {
        *("ray", "tracking", "evaluation", "resume", "controls", "output_dir", "demo"),
        *("corpus.cache_dir", "corpus.if_changed"),
        *("student.path", "student.role", "student.from_teacher.tower", "teacher.path"),
        *(f"corpus.sources.*.{name}" for name in ("path", "revision", "image_root")),
        *(f"teacher.{name}" for name in ("placement", "transport", "look_ahead", "micro_batches_per_call")),
        "teacher.max_restarts",
        *(f"train.{name}" for name in ["steps", *NO_RESULT.split(), *OCCASIONS.split()]),
    },
    NOT_IN_FINGERPRINT: {
        *("corpus.cache_dir", "corpus.if_changed"),
        *(f"corpus.sources.*.{name}" for name in ("ce_weight", "kd_weight", "path", "revision", "image_root")),
    },
    NOT_COMPARED: {
        *("name", "output_dir", "resume", "controls", "demo", "tracking", "corpus.cache_dir", "student.role"),
        *(f"train.{name}" for name in OCCASIONS.split()),
    },
    SEARCHABLE: {
        *(
            "align",
            "distill",
            "train",
            "teacher.context",
            "teacher.scope",
            "teacher.earlier_turns",
            "student.from_teacher",
        ),
        *(f"corpus.{name}" for name in ("sources", "rows", "seed", "validation_rows", "max_length")),
        *(f"corpus.{name}" for name in ("max_reject_rate", "rows_per_shard", "if_changed")),
    },
    SAME_HELD_OUT: {
        *(f"corpus.{name}" for name in ("rows", "seed", "max_reject_rate", "rows_per_shard")),
        *("corpus.cache_dir", "corpus.if_changed"),
        *(f"corpus.sources.*.{name}" for name in ("weight", "language_heavy", "ce_weight", "kd_weight")),
    },
}
EVERY_KEY = [key for key, _ in fields()]


def test_the_walk_finds_every_setting():
    """Sections, lists of sections and optional sections are entered; schedules are values."""
    assert len(EVERY_KEY) == len(set(EVERY_KEY)) > 120
    assert {"name", "train.lora.rank", "corpus.sources.*.format", "evaluation.tasks.*.stop"} <= set(EVERY_KEY)
    assert "distill.temperature" in EVERY_KEY and "distill.temperature.start" not in EVERY_KEY


@pytest.mark.parametrize("fact", Fact)
def test_each_fact_is_stated_where_it_is_true(fact: Fact):
    """The settings that state a fact are exactly those it is true of: any other change of either is an error here."""
    assert settings_with(fact) == TRUTH[fact]


@pytest.mark.parametrize("fact", Fact)
def test_a_fact_holds_inside_what_states_it(fact: Fact):
    """Every setting of a run has the facts stated at itself or at a section around it, and no other ones."""
    for key in EVERY_KEY:
        around = {key[:end] for end in range(1, len(key) + 1) if end == len(key) or key[end] == "."}
        assert has(fact, key) is bool(around & TRUTH[fact]), key


def test_items_are_found_under_their_names():
    """`*` stands for any item's name, dots included."""
    assert has(MAY_CHANGE, "corpus.sources.t0.long.path")
    assert not has(MAY_CHANGE, "corpus.sources.t0.long.limit")
    assert has(SEARCHABLE, "corpus.sources.docvqa.weight")


def test_a_new_setting_is_treated_with_care():
    """A field of which nothing is said may not change on resume, is in the fingerprint, compared, and not searched; the
    held-out rows depend on it."""

    class New(BaseModel):
        plain: int = 0
        bounded: Annotated[int, Field(ge=0)] = 0

    assert not any(fields_with(fact, New) for fact in Fact)
    assert not any(has(fact, key) for fact in Fact for key in ("new", "student.new", "teacher.new"))
    assert not any(has(fact, "corpus.new") for fact in Fact)
    assert not any(has(fact, "train.new") for fact in Fact if fact is not SEARCHABLE)


def test_the_fingerprint_leaves_out_what_the_sections_say():
    """These names, and no others, of the corpus and of a source are not part of the fingerprint."""
    assert fields_with(NOT_IN_FINGERPRINT, CorpusConfig) == {"cache_dir", "if_changed"}
    assert fields_with(NOT_IN_FINGERPRINT, SourceConfig) == {"path", "revision", "image_root", "ce_weight", "kd_weight"}


def test_a_whole_part_of_a_run_is_not_searched():
    """Sweeps search settings of `train` and `distill`, sections inside them too, but not these themselves."""
    assert searchable("train.learning_rates") and searchable("train.learning_rates.decoder")
    assert not searchable("train") and not searchable("corpus") and not searchable("corpus.cache_dir")


def test_resume_tells_only_what_may_not_change():
    """Of two trees that differ everywhere, the lines are those of settings that may not change."""
    before: dict[str, Any] = {"ray": {"num_workers": 1}, "train": {"steps": 1, "grad_clip": 1}, "seed": 0}
    now: dict[str, Any] = {"ray": {"num_workers": 2}, "train": {"steps": 2, "grad_clip": 2}, "seed": 1}
    lines = differences(before, now, settings_with(MAY_CHANGE))
    assert lines == ["train.grad_clip: 1 before, 2 now", "seed: 0 before, 1 now"]
    assert set(before) <= set(Config.model_fields)
