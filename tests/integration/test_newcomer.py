"""The first hour of someone new: the documented commands, from a folder of one's own, with relative paths."""

import json
from pathlib import Path

import commands
import pytest
import yaml
from tinyrun import settings

from lingu_ray.corpus.store import Corpus
from lingu_ray.evaluation.recovery_json import read_recovery

pytestmark = pytest.mark.slow

SPACE = {"name": "sweep-mine", "base": "my.yaml", "search": {"distill.w_kd": {"grid": [2]}}, "retries": 0}
ITEMS = [{"query": f"{i} is", "choices": ["odd", "even"], "gold": (i + 1) % 2} for i in range(8)]


@pytest.fixture(scope="module")
def here(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, items and settings, all named by relative paths; nothing else of it is set."""
    folder = tmp_path_factory.mktemp("here")
    for name, target in (("models/vlm", "student"), ("models/lm", "teacher"), ("data", ".")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(data / target)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    tree = settings(data, folder, name="mine", controls=["plain_ce"], train={"steps": 2, "validate_every": 0})
    del tree["output_dir"]
    tree |= {"student": {"path": "models/vlm"}, "teacher": {"path": "models/lm"}}
    for source, file in zip(tree["corpus"]["sources"], ("data/text.jsonl", "./data/pictures.jsonl"), strict=True):
        source["path"] = file
    kinds = (("language", "words"), ("vision", "seen"))
    language = {"kind": "language", "type": "multiple_choice", "path": "items.jsonl"}
    vision = {"kind": "vision", "type": "exact_match", "path": "seen.jsonl"}
    seen = [{"question": "Even or odd?", "image": f"data/{i}.png", "answer": "even"} for i in range(12)]
    (folder / "seen.jsonl").write_text("".join(json.dumps(item) + "\n" for item in seen))
    tasks = [{"name": name} | (language if kind == "language" else vision) for kind, name in kinds]
    tree["evaluation"] = {"tasks": tasks, "engine": "transformers", "bootstrap": 50}
    (folder / "my.yaml").write_text(yaml.safe_dump(tree))
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks, "bootstrap": 50}))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


def run(here: Path, module: str, *words: str, ray: str | None = None) -> str:
    """Run `python -m …` there, on the Ray at that address or one of its own; returns what it printed."""
    printed = commands.run(module, *words, cwd=here, env={"RAY_ADDRESS": ray} if ray else None, warm=True)
    assert "Traceback" not in printed
    return printed


def test_train_evaluate_and_compare(here: Path, ray_cluster: str):
    """A run with its control, found again by an absolute spelling; its export and the pair measured; both compared.

    The first command starts Ray; the others join one that is there.
    """
    first = run(here, "lingu_ray.train", "my.yaml")
    assert "mine: step 2/2" in first and str(here / "runs/mine/report/report.html") in first
    check_trained_items(here, first)
    absolute = (f"student.path={here}/models/vlm", f"output_dir={here}/runs")
    (here / "runs/mine/contamination.json").unlink()  # as of a run whose tasks are others now
    again = run(here, "lingu_ray.train", "my.yaml", *absolute, ray=ray_cluster)
    assert "found, finished before (2 steps)" in again and "step 2/2" not in again
    check_trained_items(here, again)
    models = ("teacher=models/lm", "adapted=models/vlm", "distilled=runs/mine/export")
    run(here, "lingu_ray.evaluate", *models, "tasks=tasks.yaml", "out=measured", "engine=transformers", ray=ray_cluster)
    measured = read_recovery(here / "measured")
    assert measured is not None and measured.tasks.keys() == {"words", "seen"}
    assert "distill.policy" in run(here, "tuning.compare", "runs/mine", "runs/mine/controls/plain_ce")


def check_trained_items(here: Path, printed: str) -> None:
    """The pictures of the data are asked about, too: those of rows that the run reads are counted, and told."""
    run_folder = here / "runs/mine"
    found = json.loads((run_folder / "contamination.json").read_text())
    corpus = Corpus(Path(json.loads((run_folder / "corpus.json").read_text())["path"]))
    read = {image for row in corpus.rows(range(found["seen"]["rows"])) for image in row.images}
    seen = [json.loads(line)["image"] for line in (here / "seen.jsonl").read_text().splitlines()]
    expected = sum((here / image).read_bytes() in read for image in seen)
    assert 0 < expected == found["seen"]["found"] and found["words"]["found"] == 0
    said = f"{expected} of 12 items of seen stand in rows that are trained on"
    assert printed.count(said) == 2  # before the training, and beside the verdict
    pages = (run_folder / "report/report.html", run_folder / "export/README.md")
    assert [said in page.read_text() and "of words stand" not in page.read_text() for page in pages] == [True, True]


def test_sweep(here: Path, ray_cluster: str):
    """A sweep over a recipe with relative paths, into the default folder: its trial is trained and measured, and that
    what it is measured by is trained on is told before, once."""
    printed = run(here, "tuning.sweep", "space.yaml", "train.steps=2", ray=ray_cluster)
    assert printed.count("of 12 items of seen stand in rows that are trained on") == 1
    outcomes = [json.loads(path.read_text()) for path in (here / "runs/sweep-mine/trials").glob("*/trial.json")]
    assert [outcome["state"] for outcome in outcomes] == ["finished"]
