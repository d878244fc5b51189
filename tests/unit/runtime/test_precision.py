"""`train.precision: auto`: what is chosen by what, that a run keeps it, and how many threads it is timed with."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from tinyrun import config

from lingu_ray.atomic import write_json, write_text
from lingu_ray.config.command_line import to_yaml
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.linux import cores
from lingu_ray.runtime.controls import control_config
from lingu_ray.runtime.resume import check_settings
from lingu_ray.runtime.run import Run
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.tracking.environment import PRECISION, read_environment, record_environment
from lingu_ray.runtime.trainer import share_precision
from lingu_ray.runtime.training.precision import as_started, by_speed, settled, times_as_fast, use_tensor_cores

AUTO = {"precision": "auto"}


@pytest.mark.parametrize(
    ("ratio", "chosen"), [(0.4, "fp32"), (1.0, "fp32"), (1.19, "fp32"), (1.2, "bf16"), (1.9, "bf16")]
)
def test_a_cpu_takes_bf16_where_it_is_clearly_faster(ratio: float, chosen: str) -> None:
    """And the reason has the measured ratio."""
    choice = by_speed(ratio)
    assert choice.precision == chosen and f"{ratio:.2f} times as fast in bf16 as in fp32 on this CPU" in str(choice)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "highest"), ("cuda", "high")])
def test_float32_is_multiplied_as_tf32_on_gpus_alone(device: str, precision: str) -> None:
    """On a CPU nothing changes."""
    try:
        use_tensor_cores(torch.device(device))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_ratio_is_measured() -> None:
    """Of real passes in both precisions: a positive number."""
    ratio = times_as_fast(64, 128, 32)
    assert math.isfinite(ratio) and ratio > 0


@pytest.mark.parametrize("recorded", ["fp32", "bf16"])
def test_a_run_keeps_what_it_was_started_with(recorded: str, tmp_path: Path) -> None:
    """A resumed run is never timed again, and `auto` agrees with what was chosen or set; another one is refused."""
    run, open_run = config(tmp_path, tmp_path, train={"precision": recorded}), config(tmp_path, tmp_path, train=AUTO)
    folder = RunFolder(run.run_dir)
    assert as_started(open_run, folder) == open_run  # nothing there yet
    write_text(folder.config, to_yaml(run))
    assert as_started(open_run, folder) == open_run  # nothing trained yet
    write_json(folder.checkpoints / "step-00000004" / "state.json", {"step": 4, "validation_ce": None})
    assert as_started(open_run, folder) == run
    check_settings(open_run, folder)
    other = config(tmp_path, tmp_path, train={"precision": {"fp32": "bf16", "bf16": "fp32"}[recorded]})
    assert as_started(other, folder) == other
    with pytest.raises(UserError, match=r"train\.precision"):
        check_settings(other, folder)


def test_a_control_has_the_precision_of_its_run(tmp_path: Path) -> None:
    """Also where the run was trained before, and the control is new: nothing is timed again."""
    before, given = (config(tmp_path, tmp_path, train={"precision": one}) for one in ("bf16", "auto"))
    folder = RunFolder(before.run_dir)
    write_text(folder.config, to_yaml(before))
    write_json(folder.checkpoints / "step-00000004" / "state.json", {"step": 4, "validation_ce": None})
    lease = Lease(tmp_path, "nobody's")
    runs = [Run(one, lease) for one in (given, control_config(given, "same_ce"))]
    share_precision(runs)
    assert [run.config.train.precision for run in runs] == ["bf16", "bf16"]
    assert [run.precision for run in runs] == [None, "bf16: as the run beside it"]


def test_the_trials_of_a_sweep_share_what_is_recorded(tmp_path: Path) -> None:
    """What was chosen at the first call holds for all later ones; the record outlives further ones of the folder."""
    base = config(tmp_path, tmp_path, train=AUTO)
    record_environment(tmp_path, "bf16: 1.90 times as fast")
    record_environment(tmp_path)
    assert read_environment(tmp_path)[PRECISION] == "bf16: 1.90 times as fast"
    assert settled(base, tmp_path).train.precision == "bf16"
    fixed = config(tmp_path, tmp_path)
    assert settled(fixed, tmp_path) == fixed


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, None),
        ({"sys/devices/system/cpu/cpu{}/topology/thread_siblings_list": "0-1023"}, 1),  # hyperthreads of one core
        ({"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1),  # of a group above
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cores_are_physical_and_within_limits(files: dict[str, str], most: int | None, tmp_path: Path) -> None:
    """By what Linux writes of the machine; where it writes nothing, the CPUs that the process may use."""
    usable = os.sched_getaffinity(0)
    for name, text in files.items():
        for cpu in usable:
            write_text(tmp_path / name.format(cpu), text)
    assert cores(tmp_path) == (most or len(usable))
    assert 1 <= cores() <= len(usable)
