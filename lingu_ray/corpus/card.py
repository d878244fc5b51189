"""The card of a data set (README.md on the hub), which may list configurations, each with files of its own."""

from __future__ import annotations

from huggingface_hub.repocard import REGEX_YAML_BLOCK, RepoCard

from lingu_ray import storage
from lingu_ray.config.strict_yaml import YAMLError


def configurations(folder: str) -> list[str] | None:
    """Names of the configurations in the card of a folder or location; None if there are none."""
    card = storage.below(folder, "README.md")
    if not storage.is_file(card):
        return None
    with storage.open_file(card) as file:
        text = file.read().decode("utf-8-sig", errors="replace")
    try:
        configs = RepoCard(text).data.to_dict().get("configs") if REGEX_YAML_BLOCK.search(text) else None
    except (YAMLError, ValueError):  # a malformed card is not our user's mistake
        return None
    if not isinstance(configs, list):
        return None
    return [str(one["config_name"]) for one in configs if isinstance(one, dict) and "config_name" in one]
