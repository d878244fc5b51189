"""Measuring on a GPU begins where there is one; a driver that is broken is no machine without a GPU."""

from pathlib import Path

import pytest

from benchmarks.gpu import main
from benchmarks.report import machine
from lingu_ray.errors import UserError
from lingu_ray.runtime.doctor import gpu


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, or what nvidia-smi says; the record of a benchmark has it, too."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match="shows no GPU here: size=tiny"):
        main(["size=full", f"out={tmp_path}"])
    assert "nvidia_smi" not in machine()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'version mismatch'\nexit 18\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    with pytest.raises(
        UserError, match=r"nvidia-smi fails here: version mismatch \(exit code 18\): restart the machine"
    ):
        main(["size=full", f"out={tmp_path}"])
    assert machine()["nvidia_smi"] == "version mismatch (exit code 18)"
