"""Settings as flat text: one entry per setting, without the credentials that an address may carry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lingu_ray.config import Schedule, strict_yaml

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)|(?<=[?&]password=)[^&\s]+|(?<=[?&]token=)[^&\s]+|(?<=[?&]sig=)[^&\s]+")


def flat(settings: BaseModel | dict[str, Any]) -> dict[str, str]:
    """Every setting as text, by the dotted key that the command line takes, without credentials."""
    return {key: without_credentials(_text(value)) for key, value in _leaves(settings, "")}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list) and value and all(hasattr(item, "name") for item in value):
        value = {item.name: item for item in value}
    if isinstance(value, BaseModel) and not isinstance(value, Schedule):
        value = {name: getattr(value, name) for name in type(value).model_fields if name != "name" or not key}
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}" if key else str(name))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path | Schedule) else strict_yaml.dump(value, inline=True)


def without_credentials(text: str) -> str:
    """The text with `…` in place of user and password in addresses, and of password, token or signature in queries."""
    return _CREDENTIALS.sub("…", text)
