"""What a run was made with: versions, git commit and hardware, as its folder has them."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "environment.json"


def read_versions(run_dir: Path) -> dict[str, str]:
    """The content of the run's `environment.json`; empty for a run that has none."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
