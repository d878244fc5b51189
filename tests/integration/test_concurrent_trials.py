"""How many trials run at once: as many as the cluster has room for now, whatever it was when they were drawn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from lingu_ray.config.command_line import load_config
from tuning import sweep  # noqa: F401  (which quiets Tune)
from tuning.run import limited
from tuning.search import algorithm
from tuning.space import Space

pytestmark = pytest.mark.slow
TRIALS = 6


def crowd() -> Any:
    """A trial that waits until as many as wanted are there, and a while for more; then fails where the folder says so.

    Its class is made here, for Ray's processes do not find this file.
    """

    class Crowd(tune.Trainable):
        # pyrefly: ignore [bad-override]  (`tune.with_parameters` adds arguments)
        def setup(self, config: dict[str, Any], folder: Path) -> None:
            self.folder, self.here = folder, folder / "running" / f"{config['x']}"

        def note(self) -> None:
            """Note how many are there."""
            (self.folder / "peaks" / f"{len(list(self.here.parent.iterdir()))}").touch()

        def step(self) -> dict[str, Any]:
            wanted, give_up = (self.folder / "wanted").read_text(), time.monotonic() + 60
            self.here.touch()
            while not (self.folder / "peaks" / wanted).exists() and time.monotonic() < give_up:
                self.note()
                time.sleep(0.2)
            time.sleep(3)
            self.note()
            self.here.unlink()
            if (self.folder / "fail").exists():
                raise RuntimeError("out of memory")
            return {"done": True}

    return Crowd


def peak(tuner: tune.Tuner, folder: Path) -> int:
    """How many ran at once."""
    tuner.fit()
    return max(int(path.name) for path in (folder / "peaks").iterdir())


def test_a_sweep_that_is_resumed_has_as_many_trials_at_once_as_there_is_room_for(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fewer than at its start, and more, those that failed included; and Tune prints nothing of it."""
    (tmp_path / "running").mkdir()
    (tmp_path / "fail").touch()
    space = Space.model_validate({"name": "s", "base": "demo", "search": {"distill.w_kd": {"grid": [*range(TRIALS)]}}})
    base = load_config(["demo"])

    def tuner(concurrent: int) -> tune.Tuner:
        (tmp_path / "wanted").write_text(f"{concurrent}")
        (tmp_path / "peaks").mkdir(exist_ok=True)
        for path in (tmp_path / "peaks").iterdir():
            path.unlink()
        trainable = limited(tune.with_parameters(crowd(), folder=tmp_path), concurrent)
        if tune.Tuner.can_restore(state := str(tmp_path / "tune" / "crowd")):
            return tune.Tuner.restore(state, trainable, resume_unfinished=True, resume_errored=True)
        return tune.Tuner(
            trainable,
            param_space={"x": tune.grid_search([*range(TRIALS)])},
            tune_config=tune.TuneConfig(search_alg=algorithm(space, base)),
            run_config=tune.RunConfig(name="crowd", storage_path=str(tmp_path / "tune"), verbose=0),
        )

    assert peak(tuner(2), tmp_path) == 2
    assert peak(tuner(1), tmp_path) == 1
    (tmp_path / "fail").unlink()
    assert peak(tuner(3), tmp_path) == 3
    assert "Configuration for experiment" not in capfd.readouterr().out
