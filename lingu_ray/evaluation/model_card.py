"""The model card: README.md of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lingu_ray.config import Config
from lingu_ray.evaluation.report import environment


def write_model_card(
    export_dir: Path, config: Config, result: dict[str, Any] | None, manifest: dict[str, Any] | None
) -> Path:
    """Write the export's README.md, front matter included.

    Args:
        export_dir: the exported model's folder.
        config: the run's settings.
        result: content of `recovery.json`; None where the run was not evaluated.
        manifest: the corpus manifest; None where it is not at hand.
    """
    template = environment().get_template("model_card.md")
    text = template.render(
        front_matter=_front_matter(config),
        student=_public(config.student.path),
        teacher=_public(config.teacher.path),
        config=config,
        result=result,
        manifest=manifest,
    )
    path = export_dir / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _front_matter(config: Config) -> str:
    """YAML that the Hugging Face hub reads. Local folders are no base models it could link to, so they stay out."""
    origins = [config.student.path, config.teacher.path]
    matter: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vision-language-model", "knowledge-distillation", "lingudistill", "lingu_ray"],
    }
    if base := [origin for origin in origins if origin and _is_hub_id(origin)]:
        matter["base_model"] = base
    return yaml.safe_dump(matter, sort_keys=False).strip()


def _public(origin: str | None) -> str | None:
    """A hub id, or the last part of a local path: where a folder lay is nobody's business."""
    return origin if origin is None or _is_hub_id(origin) else Path(origin).name


def _is_hub_id(origin: str) -> bool:
    return origin.count("/") == 1 and not origin.startswith((".", "/", "~")) and not Path(origin).exists()
