"""What all settings are made of: sections, schedules (values that change over a run), lists, and names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lingu_ray.config.numbers import checked_numbers

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,149}$"
"""A valid name. It becomes the name of a file or folder (not a hidden one, not `..`) and a part of dotted keys. File
systems take 255 letters, MLflow 250 of a key."""
PATTERNS = {NAME: "of a-z A-Z 0-9 _ - ., up to 150, no . first"}
"""Patterns in words, for help and errors."""

BESIDE_RUNS = ("mlflow.db", "mlartifacts", "inspect")
"""Names that are taken in the folder of runs: MLflow's store with its files, and the pages of `lingu-ray inspect`."""


def _is_free(name: str) -> str:
    if name in BESIDE_RUNS:
        raise ValueError(
            f"{name} lies beside the runs already (MLflow's store, or pages of inspect): take another name"
        )
    return name


FolderName = Annotated[str, Field(pattern=NAME), AfterValidator(_is_free)]
"""The name of a run's or a sweep's folder."""


class Section(BaseModel):
    """A part of the settings. Unknown keys are errors, defaults are validated, instances are frozen.

    Numbers must be finite; true and false are no numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return checked_numbers(handler(source))

    def has_default(self, name: str) -> bool:
        """Whether a setting has its default value, whether it was given or not."""
        return getattr(self, name) == type(self).model_fields[name].default


S = TypeVar("S", bound=Section)
RECORDED = "recorded"
"""Validation context for settings that a run has recorded, perhaps under a version with fewer rules."""


def rule(check: Callable[[S], S]) -> Any:
    """Decorate a method that refuses settings of a section that do not fit together; recorded settings pass."""

    def checked(section: S, info: ValidationInfo) -> S:
        return section if info.context == RECORDED else check(section)

    return model_validator(mode="after")(checked)


class Schedule(Section):
    """A value that changes over the run: `{start: 4, end: 1, shape: cosine}`; a plain number stays constant.

    `[[0, 4], [0.5, 2]]` changes in steps: 4 from the start, 2 from half of the run on.
    """

    start: float = Field(ge=0, description="value at the first step")
    end: float = Field(ge=0, description="value at the end of the schedule, and after it")
    shape: Literal["linear", "cosine"] = Field("linear", description="how the value moves from start to end")
    until: float = Field(1.0, gt=0, le=1, description="fraction of the run at which `end` is reached")
    points: tuple[tuple[float, float], ...] = Field(
        (), description="[fraction of the run, value] pairs, each value held until the next; replaces the other four"
    )

    @model_validator(mode="before")
    @classmethod
    def _points_alone(cls, given: Any) -> Any:
        """Derive from points the four settings that they replace, so that equal schedules compare as equal."""
        points = given.get("points") if isinstance(given, dict) else None
        if points is None or not _are_pairs(points):
            return given
        derived = {"start": points[0][1], "end": points[-1][1]}
        return {name: value for name, value in given.items() if name not in ("shape", "until")} | derived

    @rule
    def _in_order(self) -> Schedule:
        starts = [start for start, _ in self.points]
        if self.points and (starts[0] != 0 or starts != sorted(set(starts)) or min(v for _, v in self.points) < 0):
            raise ValueError(f"points must start at 0, rise, and have values of 0 or more, found {self.points}")
        if starts and starts[-1] > 1:
            raise ValueError(f"points begin at fractions of the run, not steps: give 0 to 1, found {starts[-1]:g}")
        return self

    def __str__(self) -> str:
        if self.points:
            return ", ".join(f"{value:g} from {start:.0%}" for start, value in self.points)
        return f"{self.start:g}" if self.start == self.end else f"{self.start:g} → {self.end:g} ({self.shape})"

    @property
    def always_zero(self) -> bool:
        """Whether the value is 0 over the whole run."""
        return not any((self.start, self.end, *(value for _, value in self.points)))

    def at(self, progress: float) -> float:
        """Value at `progress` (fraction of the run done, 0 to 1)."""
        if self.points:
            return next(value for start, value in reversed(self.points) if start <= progress)
        x = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        return self.start + (self.end - self.start) * x


def _expanded(value: object) -> object:
    """The schedule that a number, or a list of points, stands for."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"start": value, "end": value}
    return {"points": value} if _are_pairs(value) else value


def _are_pairs(value: Any) -> bool:
    pairs = value if isinstance(value, list | tuple) else ()
    return len(pairs) > 0 and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)


Scheduled = Annotated[Schedule, BeforeValidator(_expanded)]


def _split_commas(value: object) -> object:
    """The list that `0.25, 0.5`, or a single value, stands for."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


class _CommaSchema:
    """Lets JSON schemas accept a list of words as text with commas between."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        listed = handler(schema)
        word = "|".join(map(re.escape, listed["items"].get("enum", ()))) or "[^,]*"
        return {"anyOf": [listed, {"type": "string", "pattern": rf"^\s*({word})\s*(,\s*({word})\s*)*$"}]}


T = TypeVar("T")
Several = Annotated[tuple[T, ...], BeforeValidator(_split_commas), _CommaSchema]
"""One value or several, which may be written with commas between: `sizes=8,64`."""


def duplicates(names: list[str]) -> list[str]:
    """The names that a list has more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})
