"""Files and folders of a run; of one in a bucket, in a working folder of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lingu_ray.atomic import read_json
from lingu_ray.storage import below, is_file, join, origin, remove

_SETTINGS = ("config.yaml", "space.yaml")  # of a run, of a sweep
CHECKPOINT = re.compile(r"step-\d{8,}")
"""Names of checkpoints; what else lies beside them, such as a copy made by hand, is left alone."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, `runs/<name>/`."""

    root: Path

    @property
    def place(self) -> Path | str:
        """What people know the folder by: its path, or the location that it is a working folder of."""
        return origin(self.root)

    @property
    def config(self) -> Path:
        """The complete settings, as YAML."""
        return self.root / "config.yaml"

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
    def corpus(self) -> Path:
        """JSON with the corpus's path, fingerprint and content identities of its sources."""
        return self.root / "corpus.json"

    @property
    def contamination(self) -> Path:
        """JSON on the evaluation items that stand in the rows trained on, by task."""
        return self.root / "contamination.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, `step-00000100`."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The finished model, in Hugging Face format; in the driver's working folder without its weights."""
        return self.root / "export"

    @property
    def exported_model(self) -> Path | str:
        """Where the finished model can be loaded from: its folder, or location."""
        return origin(self.export)

    @property
    def exported(self) -> Path:
        """JSON with the step after which `export` was written."""
        return self.root / "exported.json"

    @property
    def exported_step(self) -> int | None:
        """The step of the finished model; None where there is none."""
        if not (self.export.exists() and self.exported.exists()):
            return None
        return read_json(self.exported, "step")["step"]

    @property
    def metrics(self) -> Path:
        """One JSON object a line: training steps and validations."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Answers of the student to validation questions, one JSON object a line."""
        return self.root / "samples.jsonl"

    @property
    def logs(self) -> Path:
        """JSON lines of what driver and workers log, a file each."""
        return self.root / "logs"

    @property
    def report(self) -> Path:
        """report.html, plots, recovery.json."""
        return self.root / "report"

    @property
    def stop(self) -> Path:
        """A file that asks the workers to save and stop after the current step."""
        return self.root / "STOP"

    @property
    def mlflow(self) -> Path:
        """JSON with store and id of the MLflow run."""
        return self.root / "mlflow.json"

    @property
    def wandb(self) -> Path:
        """JSON with the id of the run of Weights & Biases."""
        return self.root / "wandb.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def models(self) -> Path:
        """JSON with the content identities of student and teacher."""
        return self.root / "models.json"

    @property
    def environment(self) -> Path:
        """JSON with versions, commit and hardware that the run was made with."""
        return self.root / "environment.json"

    @property
    def ray(self) -> Path:
        """Ray Train's own state."""
        return self.root / ".ray"

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
