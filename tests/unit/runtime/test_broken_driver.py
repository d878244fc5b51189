"""A broken NVIDIA driver ends a run before it trains on CPUs, unless that is what was asked for."""

from pathlib import Path

import pytest

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.gpus import check_driver
from lingu_ray.runtime.doctor import gpu


def test_a_run_does_not_train_on_cpus_for_a_broken_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where settings leave it open; not on a machine without a GPU, nor where CPUs, or GPUs elsewhere, are taken."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    check_driver(RayConfig(), use_gpu=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Driver/library version mismatch'\nexit 18\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    with pytest.raises(UserError, match=r"nvidia-smi fails: Driver/library .*set ray\.use_gpu=false to train on CPUs"):
        check_driver(RayConfig(), use_gpu=False)
    check_driver(RayConfig(use_gpu=False), use_gpu=False)
    check_driver(RayConfig(), use_gpu=True)
    monkeypatch.setattr(gpu, "has_device", lambda: False)
    check_driver(RayConfig(), use_gpu=False)
