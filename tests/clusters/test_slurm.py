"""clusters/slurm/train.sbatch on a real SLURM of two nodes."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import run
from slurm_cluster import Slurm, missing_programs, slurm_cluster
from tinyrun import write_settings

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing_programs()), reason=f"SLURM is not installed: {', '.join(missing_programs())}"),
]

ROOT = Path(__file__).parents[2]
STEPS = 500  # of tenths of a second: the end comes long after the signal


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where Ray keeps its sockets and logs: a short path."""
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def wait_for(condition: Callable[[], object], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain:\n{explain()}"
        time.sleep(0.2)


def test_a_run_that_is_signaled_saves_is_queued_again_and_ends_as_if_undisturbed(
    slurm: Slurm, data: Path, warm_workers: Path, scratch: Path, tmp_path: Path
):
    """Two nodes train; USR1, as SLURM sends it before the time is up, ends the run after a step with a checkpoint and
    requeues the job, which resumes there. The weights are to the bit those of a run without SLURM or a stop."""
    train = {"steps": STEPS, "samples": 0, "checkpoint_every": 1000, "validate_every": 1000, "rows_per_step": 12}
    settings = write_settings(tmp_path / "run.yaml", data, tmp_path / "plain", train=train, ray={"num_workers": 2})
    output_dir = tmp_path / "shared"
    env = {"LINGU_RAY_STATE": str(tmp_path / "state"), "LINGU_RAY_VENV": sys.prefix, "TMPDIR": str(scratch)}
    options = ("--gpus-per-node=0", "--cpus-per-task=2", f"--output={tmp_path}/job.out")
    script = (ROOT / "clusters/slurm/train.sbatch", settings, f"output_dir={output_dir}")
    number = slurm.command("sbatch", "--parsable", *options, *script, env=env, cwd=ROOT).strip()
    folder = output_dir / "tiny"

    def explain() -> str:
        logs = [tmp_path / "job.out", *sorted((tmp_path / "state").rglob("*.log"))]
        return "\n".join([str(slurm.job(number)), *(f"{log}:\n{log.read_text()}" for log in logs if log.exists())])

    def steps_done() -> int:
        log = folder / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def in_state(*states: str) -> bool:
        state = slurm.job(number)["JobState"]
        assert state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", *states), explain()
        return state in states

    def queued_again() -> bool:
        """Ten seconds long, for while a job ends to be queued again SLURM calls it pending, failed and pending."""
        deadline = time.monotonic() + 10
        while (slurm.job(number)["Restarts"], slurm.job(number)["JobState"]) == ("1", "PENDING"):
            if time.monotonic() > deadline:
                return True
            time.sleep(0.2)
        return False

    wait_for(lambda: in_state("RUNNING") and steps_done() >= 2, 400, explain)
    slurm.command("scancel", "--batch", "--signal=USR1", number)
    wait_for(queued_again, 300, explain)
    assert 2 <= steps_done() < STEPS
    assert len(list((folder / "checkpoints").iterdir())) == 1, explain()
    slurm.command("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM itself waits for two minutes
    wait_for(lambda: slurm.job(number)["JobState"] == "COMPLETED", 400, explain)

    run("lingu_ray.train", settings, warm=True)
    exports = [place / "tiny/export/model.safetensors" for place in (output_dir, tmp_path / "plain")]
    assert exports[0].read_bytes() == exports[1].read_bytes()


def test_a_job_with_an_environment_of_its_own_starts_ray_on_its_nodes(slurm: Slurm, scratch: Path, tmp_path: Path):
    """`sbatch --export=NAMES`, or NONE, which sites set for all: the run is reached, and says that its file is none.
    What Ray wrote on the nodes goes with it, and what a job left there that was killed."""
    (scratch / "lr-999999-0").mkdir()
    env = {"LINGU_RAY_STATE": str(tmp_path / "state"), "LINGU_RAY_VENV": sys.prefix, "TMPDIR": str(scratch)}
    options = (f"--export={','.join(env)}", "--gpus-per-node=0", "--cpus-per-task=2", f"--output={tmp_path}/job.out")
    script = (ROOT / "clusters/slurm/train.sbatch", "no_such_recipe")
    number = slurm.command("sbatch", "--parsable", *options, *script, env=env, cwd=ROOT).strip()
    log = tmp_path / "job.out"
    wait_for(lambda: slurm.job(number)["JobState"] == "FAILED", 400, lambda: log.read_text())
    assert "error: no recipe 'no_such_recipe'" in log.read_text()
    wait_for(lambda: not [*scratch.glob("lr-*")], 60, lambda: f"{[*scratch.iterdir()]} are left\n{log.read_text()}")
