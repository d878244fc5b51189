"""Class labels of Hugging Face datasets: integers, which records get as the names in the dataset's features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lingu_ray.atomic import read_json
from lingu_ray.corpus.record import BadRecord, Record
from lingu_ray.errors import UserError

NO_LABEL = -1  # in splits whose answers are held back


@dataclass(frozen=True)
class Labels:
    """Columns with class labels at any depth: their features, as `datasets` writes them in JSON.

    `file`: the file beside the data that the features were read from; None: they come from the data file itself.
    """

    features: dict[str, Any]
    file: Path | None = None

    def named(self, record: Record) -> Record | BadRecord:
        """The record with names in place of integers, None for no label; a `BadRecord` where a name is missing."""
        try:
            return record | {column: _named(record[column], feature) for column, feature in self.features.items()}
        except BadRecord as bad:
            return bad


def labels_of(schema: pa.Schema, path: str) -> Labels:
    """The class labels of a file, by its schema, else by a `dataset_info.json` beside it.

    Raises:
        UserError: `dataset_info.json` is damaged.
    """
    written = (schema.metadata or {}).get(b"huggingface")
    if written is not None:
        return Labels(_labeled((json.loads(written).get("info") or {}).get("features"), schema))
    file = info_beside(path)
    if file is None:
        return Labels({})
    cure = "correct it, or remove it, and class labels are numbers"
    of_columns = read_json(file, cure=cure).get("features")
    if not isinstance(of_columns, dict | None):
        raise UserError(f"{file}: its features are no object with a key for each column: {cure}")
    features = _labeled(of_columns, schema)
    return Labels(features, file if features else None)


def info_beside(path: str) -> Path | None:
    """The `dataset_info.json` beside a file; None where there is none."""
    file = Path(path).with_name("dataset_info.json")
    return file if file.is_file() else None


def _labeled(features: dict[str, Any] | None, schema: pa.Schema) -> dict[str, Any]:
    """The features of the schema's columns that hold a class label at any depth."""
    of_columns = {column: feature for column, feature in (features or {}).items() if column in schema.names}
    return {column: feature for column, feature in of_columns.items() if "ClassLabel" in json.dumps(feature)}


def _named(value: Any, feature: Any) -> Any:
    if isinstance(feature, list):  # as older versions write lists
        feature = {"_type": "List", "feature": feature[0]}
    if value is None or not isinstance(feature, dict):
        return value
    if feature.get("_type") == "ClassLabel":
        return _name(value, feature["names"])
    inner = feature.get("feature") if isinstance(feature.get("_type"), str) else feature
    if isinstance(value, list):
        return [_named(item, inner) for item in value]
    if isinstance(value, dict) and isinstance(inner, dict):
        as_lists = inner is not feature  # a sequence of objects is stored as an object of lists
        return {key: _named(item, [inner.get(key)] if as_lists else inner.get(key)) for key, item in value.items()}
    return value


def _name(value: Any, names: list[str]) -> Any:
    if not isinstance(value, int) or value == NO_LABEL:
        return None if value == NO_LABEL else value
    if not 0 <= value < len(names):
        raise BadRecord("wrong_type", f"class label {value}, and there are {len(names)} names: {names!r:.120}")
    return names[value]
