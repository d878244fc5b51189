"""A hub dataset is read at the revision that is named, as a source and as a task."""

import json
import os
import subprocess
import sys

import pytest
from hub import serve_dataset

pytestmark = pytest.mark.slow

READ = """
import json, sys
from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.corpus.splits import split_source
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.load import load_task

for revision in json.loads(sys.argv[1]):
    try:
        source = SourceConfig(name="s", format="text", path="owner/data", revision=revision)
        trained = [record["text"] for split in split_source(source) for _, record in split.records()]
        data = dict(path="owner/data", split="train", revision=revision)
        task = TaskConfig(name="t", kind="language", type="perplexity", **data)
        print(json.dumps([trained, [item.requests[0].continuation for item in load_task(task).items]]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read_from_hub(tmp_path, contents, asked=(None,), breaks=False):
    """What `READ` says of the asked revisions of a dataset whose revisions have these files."""
    for revision, content in contents.items():
        (tmp_path / revision).mkdir()
        (tmp_path / revision / "train.jsonl").write_text(content)
    with serve_dataset("owner/data", {revision: tmp_path / revision for revision in contents}, breaks) as endpoint:
        env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "0"}
        argv = [sys.executable, "-c", READ, json.dumps(asked)]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return map(json.loads, done.stdout.splitlines())


def test_a_revision_is_what_is_read(tmp_path):
    """Without one it is main; one that is not there is named in the error."""
    contents = {revision: json.dumps({"text": f"said in {revision}"}) + "\n" for revision in ("main", "v1")}
    newest, first, absent = read_from_hub(tmp_path, contents, asked=(None, "v1", "v0"))
    assert newest == [["said in main"]] * 2
    assert first == [["said in v1"]] * 2
    assert "source s: " in absent and "revision v0" in absent


def test_a_connection_that_breaks_is_one_line(tmp_path):
    """As of any dataset that cannot be read: the error names the source, and says what happened."""
    [said] = read_from_hub(tmp_path, {"main": '{"text": "a"}\n'}, breaks=True)
    assert "source s: " in said and "no dataset 'owner/data' that the hub gives" in said and "\n" not in said


def test_data_that_are_none_are_said_to_be(tmp_path):
    """`datasets` says that an error occurred; which one, and where, is in what it wraps."""
    [said] = read_from_hub(tmp_path, {"main": '{"text": "a"}\n{"text"\n'})
    assert "source s: owner/data cannot be read: An error occurred" in said and "JSON" in said
