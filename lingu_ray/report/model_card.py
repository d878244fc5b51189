"""The model card: README.md of an exported model."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

from lingu_ray.atomic import write_text
from lingu_ray.config import Config, SourceConfig, strict_yaml
from lingu_ray.evaluation.contamination.found import trained_items
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.roles import trained_role
from lingu_ray.report.card_settings import settings_rows
from lingu_ray.report.origin import card_metadata, hub_ids, is_hub_id
from lingu_ray.report.pages import environment
from lingu_ray.report.sources import trained_sources
from lingu_ray.runtime.controls import run_of_control
from lingu_ray.runtime.resume import corpus_since
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.environment import read_environment

_LICENSE = ("license", "license_name", "license_link")
TAGS = ("vision-language-model", "lingu_ray")
DISTILLED_TAGS = ("vision-language-model", "knowledge-distillation", "lingudistill", "lingu_ray")


def write_model_card(
    export_dir: Path,
    config: Config,
    result: Recovery | None,
    manifest: dict[str, Any],
    control_of: str | None = None,
    step: int | None = None,
) -> Path:
    """Write the export's README.md, front matter included.

    Args:
        export_dir: the exported model's folder.
        config: the run's settings.
        result: what was measured; None where the run was not evaluated.
        manifest: the corpus manifest.
        control_of: of a control, the name of its run.
        step: the step that was exported; None: the last one.
    """
    templates, done, role = environment(), step or config.train.steps, trained_role(config)
    since = corpus_since(RunFolder(config.run_dir))
    templates.filters |= {"data": data_name, "cell": cell}
    text = templates.get_template("model_card.md").render(
        front_matter=strict_yaml.dump(front_matter(config)).strip(),
        config=config,
        control_of=control_of,
        role=result.own_model(role) if result and not control_of else role,
        versions=read_environment(config.run_dir),
        settings=settings_rows(config),
        sources=trained_sources(config, manifest, max(0, done - since)),
        done=done,
        since=since,
        rows=manifest["rows"],
        result=result,
        trained_items=trained_items(RunFolder(run_of_control(config.run_dir) or config.run_dir), result),
    )
    path = export_dir / "README.md"
    write_text(path, text)
    return path


def cell(text: str) -> str:
    """A text as a cell of a Markdown table, with bars and line ends escaped."""
    return " ".join(text.replace("|", r"\|").split("\n"))


def front_matter(config: Config) -> dict[str, Any]:
    """The metadata that the Hugging Face hub reads. Local models and data are left out, as they have no page there."""
    matter: dict[str, Any] = {**_license(config), **_language(config)}
    if bases := hub_ids(config.student.path) if config.student.path else []:
        matter |= {"base_model": bases, "base_model_relation": "finetune"}
    elif bases := [*hub_ids(config.teacher.path), *(hub_ids(config.student.tower[0]) if config.student.tower else [])]:
        matter["base_model"] = bases  # of decoder and tower; the model is no finetune of either alone
    if datasets := [source.path for source in config.training_sources() if is_hub_id(source.path)]:
        matter["datasets"] = list(dict.fromkeys(datasets))
    tags = DISTILLED_TAGS if config.uses_teacher else TAGS
    return matter | {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": list(tags)}


def _license(config: Config) -> dict[str, Any]:
    """The student's license, else the teacher's; none where that would be a guess.

    Both models are ancestors of the decoder's weights. It would be a guess where neither names a license, where the
    decoder and the tower of a new VLM have different ones, and where a card is unknown, as it may name another.
    """
    cards = _known_ancestors(config)
    licenses = [{key: card[key] for key in _LICENSE if card.get(key)} for card in cards]
    if config.student.tower and (len(licenses) < 2 or licenses[0] != licenses[1]):
        return {}
    return next((found for found in licenses if "license" in found), {})


def _language(config: Config) -> dict[str, Any]:
    """The languages of the student's card, else of the teacher's; none where the student's card is unknown."""
    return next(({"language": card["language"]} for card in _known_ancestors(config) if card.get("language")), {})


def _known_ancestors(config: Config) -> list[dict[str, Any]]:
    """The front matter of the cards of student (unless it is new), teacher, and a new VLM's tower.

    Up to the first card that is unknown.
    """
    student, teacher = config.student, config.teacher
    models = [(student.path, student.revision), (teacher.path, teacher.revision)]
    models += [student.tower] if student.tower else []
    cards = (card_metadata(path, revision) for path, revision in models if path is not None)
    return [card for card in takewhile(lambda card: card is not None, cards) if card is not None]


def data_name(source: SourceConfig) -> str:
    """A hub dataset as a link, with configuration and split; local data with their format."""
    limit = f", first {source.limit}" if source.limit else ""
    if not is_hub_id(source.path):
        return f"local, format {source.format}{limit}"
    parts = [*(part for part in (source.subset, source.revision) if part), source.split]
    return f"[{source.path}](https://huggingface.co/datasets/{source.path}) ({', '.join(parts)}{limit})"
