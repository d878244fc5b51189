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
        control_of: for a control, the name of the run that it is the control of.
        step: steps after which the model was exported; None: all of the run's.
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
    """A text as a cell of a Markdown table, which a bar or a line's end would close."""
    return " ".join(text.replace("|", r"\|").split("\n"))


def front_matter(config: Config) -> dict[str, Any]:
    """What the Hugging Face hub reads. Local models and data are left out: they have no page there."""
    matter: dict[str, Any] = {**_license(config), **_language(config)}
    if bases := hub_ids(config.student.path) if config.student.path else []:
        matter |= {"base_model": bases, "base_model_relation": "finetune"}
    elif bases := [*hub_ids(config.teacher.path), *(hub_ids(config.student.tower[0]) if config.student.tower else [])]:
        matter["base_model"] = bases  # decoder and tower came from them; no finetune of one, since the other was added
    if datasets := [source.path for source in config.training_sources() if is_hub_id(source.path)]:
        matter["datasets"] = list(dict.fromkeys(datasets))
    tags = DISTILLED_TAGS if config.uses_teacher else TAGS
    return matter | {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": list(tags)}


def _license(config: Config) -> dict[str, Any]:
    """The student's license, since its weights were trained on; the teacher's where the student names none.

    Both are ancestors of the decoder's weights. Where neither names a license the card names none: which one applies
    depends on models and data, and is not guessed. So it is where a new VLM's decoder and tower differ in theirs, and
    where a card is not known, which may name another.
    """
    cards = _known_ancestors(config)
    licenses = [{key: card[key] for key in _LICENSE if card.get(key)} for card in cards]
    if config.student.tower and (len(licenses) < 2 or licenses[0] != licenses[1]):
        return {}
    return next((found for found in licenses if "license" in found), {})


def _language(config: Config) -> dict[str, Any]:
    """The languages that the student's card names, or else the teacher's; none where the student's is not known."""
    return next(({"language": card["language"]} for card in _known_ancestors(config) if card.get("language")), {})


def _known_ancestors(config: Config) -> list[dict[str, Any]]:
    """The front matter of the cards of the student, where it is no new model, the teacher, and a new VLM's tower.

    Up to the first that is not known.
    """
    student, teacher = config.student, config.teacher
    models = [(student.path, student.revision), (teacher.path, teacher.revision)]
    models += [student.tower] if student.tower else []
    cards = (card_metadata(path, revision) for path, revision in models if path is not None)
    return [card for card in takewhile(lambda card: card is not None, cards) if card is not None]


def data_name(source: SourceConfig) -> str:
    """A hub dataset as a link, with configuration and split; else that it is local, and in which format."""
    limit = f", first {source.limit}" if source.limit else ""
    if not is_hub_id(source.path):
        return f"local, format {source.format}{limit}"
    parts = [*(part for part in (source.subset, source.revision) if part), source.split]
    return f"[{source.path}](https://huggingface.co/datasets/{source.path}) ({', '.join(parts)}{limit})"
