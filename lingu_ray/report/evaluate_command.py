"""The command that evaluates a run which was trained without evaluation tasks, for its report."""

from __future__ import annotations

from lingu_ray.config import CONTROLS, Config
from lingu_ray.evaluation.roles import compared_models
from lingu_ray.runtime.controls import control_folder
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.shell import model_word, shell_word
from lingu_ray.storage import origin

TASKS = "arc_easy,hellaswag,textvqa"  # to start with: two of language, one of vision


def evaluate_command(config: Config, folder: RunFolder) -> str | None:
    """`python -m lingu_ray.evaluate` with the run's models, ready to copy; its results lie in the run's folder.

    None where the export has model code of its own, which evaluation does not run.
    """
    if any(folder.export.glob("*.py")):
        return None
    exports = {name: control_folder(folder, name).export for name in CONTROLS}
    trained = {name: origin(path) for name, path in exports.items() if path.exists()}
    models = compared_models(config, folder.exported_model, trained)
    words = [model_word(name, model) for name, model in models.items()]
    out = shell_word(f"out={origin(folder.root.absolute() / 'evaluation')}")
    return " ".join(["python -m lingu_ray.evaluate", *words, f"tasks={TASKS}", out])
