"""Settings that were renamed: the old name is refused, with the new one."""

from pathlib import Path

import pytest
from config_files import FILE, refusal

from lingu_ray.config.renamed import ELSEWHERE, RENAMED
from lingu_ray.config.tree import field_at
from lingu_ray.errors import UserError
from lingu_ray.evaluate import read_arguments


def test_an_old_name_is_told_once_with_the_new_one(tmp_path: Path):
    """A file with the old name of a required setting gets one line, not a second one that the new name is missing."""
    path = tmp_path / "old.yaml"
    path.write_text(FILE.replace("format: text", "form: text"))
    assert refusal(str(path)) == f"corpus.sources.t0.long.form is called format now [{path}:7]"


def test_an_old_name_is_told_by_every_command(tmp_path: Path):
    """The same holds for a task, in a run's settings and in those of `lingu_ray.evaluate`."""
    task = "tasks: [{name: mine, kind: vision, type: anls, path: x.jsonl, form: llava}]"
    path = tmp_path / "tasks.yaml"
    path.write_text(task)
    with pytest.raises(UserError, match=rf"^tasks\.mine\.form is called format now \[{path}:1\]$"):
        read_arguments(["model", f"tasks={path}"])
    assert refusal("demo", f"evaluation={{{task}}}").startswith("evaluation.tasks.mine.form is called format now")


def test_renamed_settings_lead_somewhere():
    """Every old name is gone from the settings, and its new name is one of them, as are those for names of others."""
    assert all(field_at((*name.split("."),)) for name in ELSEWHERE.values())
    for old, new in RENAMED.items():
        assert field_at(tuple(part for part in old.split(".") if part != "*")) is None
        assert field_at(tuple(part for part in new.split(".") if part != "*")) is not None
