"""Hub ids and cards of the models that a run started from, for its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from lingu_ray import storage
from lingu_ray.config import strict_yaml
from lingu_ray.errors import UserError
from lingu_ray.hub import HUB_ERRORS
from lingu_ray.paths import hub_model, is_hub_id, model_origin


def public_name(origin: str) -> str:
    """A model's name that may be published: a hub id with its revision and GGUF file, or the last part of a path."""
    place, _ = model_origin(origin)
    return origin if hub_model(place) else Path(origin).name


def card_metadata(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The front matter of a model's card, empty where the card has none; None where the card is unknown."""
    readme = _file(model, "README.md", revision)
    if readme is None:
        return None
    try:
        block = REGEX_YAML_BLOCK.search(readme.read_text("utf-8"))
        metadata = strict_yaml.load(block[2], str(readme))[0] if block else {}
    except (UnicodeDecodeError, UserError):  # the card is damaged
        return None
    return metadata if isinstance(metadata, dict) else None


def hub_ids(model: str) -> list[str]:
    """A model's hub id; for a folder or location, the ids of its base models by its configuration, else by its card.

    Empty where none is known.
    """
    place, _ = model_origin(model)
    if hub := hub_model(place):
        return [hub[0]]
    config = _file(model, "config.json")
    named = json.loads(config.read_text("utf-8")).get("_name_or_path") if config else None
    bases = (card_metadata(model) or {}).get("base_model") or []
    candidates = ([named] if named else []), (bases if isinstance(bases, list) else [bases])
    ids = ([one for one in of_file if isinstance(one, str) and is_hub_id(one)] for of_file in candidates)
    return next(filter(None, ids), [])


def _file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file beside the model's weights, fetched alone if it is not on this machine; None where there is none."""
    place, gguf = model_origin(model)
    if hub := hub_model(place, revision):
        return _of_hub(*hub, name, gguf.get("gguf_file", "config.json"))
    if not storage.is_remote(place):
        return path if (path := Path(place, name)).is_file() else None
    try:
        return storage.fetch(storage.join(place, name))
    except UserError:
        return None


def _of_hub(model: str, revision: str | None, name: str, loaded: str) -> Path | None:
    """A file of the commit that the local file `loaded` is from; asking by branch would move the cached branch."""
    here, of_commit = (try_to_load_from_cache(model, file, revision=revision) for file in (name, loaded))
    if isinstance(here, str):
        return Path(here)
    if not isinstance(of_commit, str):
        return None
    try:
        return Path(hf_hub_download(model, name, revision=Path(of_commit).parent.name))
    except HUB_ERRORS:
        return None
