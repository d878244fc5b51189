"""Files and folders of a run; of one in a bucket, in a working folder of it."""

from __future__ import annotations

import re
from pathlib import Path

from lingu_ray.atomic import read_json
from lingu_ray.storage import below, is_file, join, origin, remove

_SETTINGS = ("config.yaml", "space.yaml")  # of a run, of a sweep
CHECKPOINT = re.compile(r"step-\d{8,}")
"""Names of checkpoints; what else lies beside them, such as a copy made by hand, is left alone."""


class RunFolder:
    """Paths of one run, `runs/<name>/`."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.yaml"  # the complete settings
        self.corpus = root / "corpus.json"  # the corpus's path, fingerprint and content identities of its sources
        self.models = root / "models.json"  # content identities of student and teacher
        self.environment = root / "environment.json"  # versions, commit and hardware that the run was made with
        self.contamination = root / "contamination.json"  # evaluation items that stand in rows trained on, by task
        self.metrics = root / "metrics.jsonl"  # a line each: training steps and validations
        self.samples = root / "samples.jsonl"  # a line each: answers of the student to validation questions
        self.logs = root / "logs"  # JSON lines of what driver and workers log, a file each
        self.checkpoints = root / "checkpoints"  # one folder a checkpoint, `step-00000100`
        self.export = root / "export"  # the finished model; in the driver's working folder without its weights
        self.exported = root / "exported.json"  # the step after which `export` was written
        self.report = root / "report"  # report.html, plots, recovery.json
        self.stop = root / "STOP"  # where it is there, workers save and stop after the current step
        self.mlflow = root / "mlflow.json"  # store and id of the MLflow run
        self.wandb = root / "wandb.json"  # id of the run of Weights & Biases
        self.tensorboard = root / "tensorboard"  # its event files
        self.ray = root / ".ray"  # Ray Train's own state

    @property
    def place(self) -> Path | str:
        """What people know the folder by: its path, or the location that it is a working folder of."""
        return origin(self.root)

    @property
    def initial_model(self) -> Path:
        """The student's processor; for `student.from_teacher` also the new model before training, and its alignment."""
        earlier = self.root / "start"  # its name in runs of earlier versions
        return earlier if earlier.is_dir() else self.root / "initial_model"

    @property
    def alignment(self) -> Path:
        """JSON on the alignment of the initial model (`align`): what it follows from, and how well pictures choose."""
        return self.initial_model / "alignment" / "record.json"

    @property
    def aligned_weights(self) -> Path:
        """The weights of the initial model that the alignment changed; in one folder with `alignment`."""
        return self.alignment.with_name("weights.safetensors")

    @property
    def exported_model(self) -> Path | str:
        """Where the finished model can be loaded from: its folder, or location."""
        return origin(self.export)

    @property
    def exported_step(self) -> int | None:
        """The step of the finished model; None where there is none."""
        if not (self.export.exists() and self.exported.exists()):
            return None
        return read_json(self.exported, "step")["step"]

    def clear(self) -> None:
        """Remove all that a run left which was never trained."""
        folders = (self.initial_model, self.ray, self.report, self.logs, self.tensorboard)
        records = (self.config, self.corpus, self.models, self.metrics, self.samples, self.environment)
        for path in (*folders, *records, self.mlflow, self.wandb, self.contamination):
            remove(path)


def run_of(folder: Path | str) -> Path | str | None:
    """The run or sweep that this folder, or location, is of, or is the report of; None for any other."""
    above = join(folder, "..") if isinstance(folder, str) else folder.parent
    of = [folder, above] if str(folder) == below(str(above), "report") else [folder]
    return next((one for one in of if any(is_file(below(str(one), name)) for name in _SETTINGS)), None)
