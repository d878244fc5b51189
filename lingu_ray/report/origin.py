"""Where models and data come from, as the Hugging Face hub names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from lingu_ray.config import strict_yaml
from lingu_ray.errors import UserError
from lingu_ray.paths import is_hub_id, model_origin


def public_name(origin: str) -> str:
    """A hub id, with the file of a GGUF, or the last part of a local path: local folders are not published."""
    hub_id, _ = model_origin(origin)
    return origin if is_hub_id(hub_id) else Path(origin).name


def card_metadata(model: str, revision: str | None = None) -> dict[str, Any]:
    """The front matter of the model's own card, in its folder or in the hub's cache; empty without a card."""
    model, _ = model_origin(model)
    readme = Path(model, "README.md") if Path(model).exists() else _cached(model, revision)
    if readme is None or not readme.is_file():
        return {}
    try:
        block = REGEX_YAML_BLOCK.search(readme.read_text("utf-8"))
        metadata = strict_yaml.load(block[2], str(readme))[0] if block else None
    except (UnicodeDecodeError, UserError):  # a card that cannot be read says nothing
        return {}
    return metadata if isinstance(metadata, dict) else {}


def hub_ids(model: str) -> list[str]:
    """The model's hub id; for a local folder the ids that it came from, by its configuration or else its card.

    A card may name several base models. Empty where none is known.
    """
    model, _ = model_origin(model)
    if is_hub_id(model):
        return [model]
    config = Path(model, "config.json")
    named = json.loads(config.read_text("utf-8")).get("_name_or_path") if config.is_file() else None
    bases = card_metadata(model).get("base_model") or []
    candidates = ([named] if named else []), (bases if isinstance(bases, list) else [bases])
    found = ([one for one in of if isinstance(one, str) and is_hub_id(one)] for of in candidates)
    return next((ids for ids in found if ids), [])


def _cached(model: str, revision: str | None) -> Path | None:
    if not is_hub_id(model):
        return None
    found = try_to_load_from_cache(model, "README.md", revision=revision)
    return Path(found) if isinstance(found, str) else None
