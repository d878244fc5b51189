"""A hub dataset is read at the revision that is named, as a source and as a task; what cannot be read is one line."""

import json
import os
import subprocess
import sys

import pytest
from hub import serve_dataset

pytestmark = pytest.mark.slow

READ = """
import json, logging, sys
from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.corpus.splits import split_source
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.load import load_task

logging.basicConfig(level=logging.INFO)
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


CONTENTS = {
    "main": '{"text": "said in main"}\n',
    "v1": '{"text": "said in v1"}\n',
    "unanswered": '{"text": "a"}\n',
    "damaged": '{"text": "a"}\n{"text"\n',
}
ASKED = (None, "v1", "v0", "unanswered", "damaged")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What `READ` says of each revision, and its log, in one process that begins with the hub's address."""
    folder = tmp_path_factory.mktemp("hub")
    revisions = {revision: folder / revision for revision in CONTENTS}
    for revision, content in CONTENTS.items():
        revisions[revision].mkdir()
        (revisions[revision] / "train.jsonl").write_text(content)
    with serve_dataset("owner/data", revisions, breaks="unanswered") as endpoint:
        env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_DATASETS_OFFLINE": "0"}
        argv = [sys.executable, "-c", READ, json.dumps(ASKED)]
        done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, map(json.loads, done.stdout.splitlines()), strict=True)) | {"log": done.stderr}


def test_a_revision_is_what_is_read(said):
    """Without one it is main; one that is not there is named in the error."""
    assert said[None] == [["said in main"]] * 2
    assert said["v1"] == [["said in v1"]] * 2
    assert "source s: " in said["v0"] and "revision v0" in said["v0"]


def test_who_waits_for_the_hub_is_told(said):
    """Before it is asked, for a source and for a task: an answer may take minutes."""
    assert all(f"{name}: asking the Hugging Face hub for owner/data" in said["log"] for name in ("s", "t"))


def test_a_connection_that_breaks_is_one_line(said):
    """As of any dataset that cannot be read: the error names the source, and says what happened."""
    told = said["unanswered"]
    assert "source s: " in told and "no dataset 'owner/data' that the hub gives" in told and "\n" not in told


def test_data_that_are_none_are_said_to_be(said):
    """`datasets` says that an error occurred; which one, and where, is in what it wraps."""
    assert "source s: owner/data cannot be read: An error occurred" in said["damaged"] and "JSON" in said["damaged"]
