"""What is checked before a run starts: tasks against the data that the run is trained on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.runtime.preparation import check_tasks

HUB = {"name": "seen", "format": "cauldron", "path": "org/set", "subset": "a", "language_heavy": True}


@pytest.mark.parametrize(
    ("task", "distill", "refused"),
    [
        ({"split": "train"}, {}, True),
        ({"split": "train", "limit": 5}, {}, True),
        ({"path": "/data/x.jsonl", "subset": None}, {}, True),
        ({"split": "test"}, {}, False),
        ({"split": "train", "subset": "b"}, {}, False),
        ({"split": "train", "where": "{{id > 9}}"}, {}, False),
        ({"split": "train", "in_mean": False}, {}, False),
        ({"path": "/data/x.jsonl", "subset": None}, {"policy": "language_only"}, False),  # not trained on
    ],
)
def test_no_mean_is_of_rows_that_are_trained_on(task: dict[str, Any], distill: dict[str, Any], refused: bool) -> None:
    """The split or file of a source, as a whole or its first rows, is no test: its score would be of memory."""
    asked = {"name": "asked", "kind": "vision", "type": "anls", "format": "cauldron", "path": "org/set", "subset": "a"}
    config = Config.model_validate(
        {
            "name": "mine",
            "student": {"path": "/vlm"},
            "teacher": {"path": "/lm"},
            "corpus": {"sources": [HUB, {"name": "file", "format": "llava", "path": "/data/x.jsonl"}]},
            "distill": distill,
            "evaluation": {"tasks": [asked | task]},
        }
    )
    source = "file" if "path" in task else "seen"
    said = f"tasks: asked: asks what the model is trained on, the rows of source {source} .*tasks.asked.in_mean=false"
    with pytest.raises(UserError, match=said) if refused else nullcontext():
        check_tasks(config)
