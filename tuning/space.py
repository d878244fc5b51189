"""A search space: which settings of a base recipe are tried, how they are drawn, for what, and at what cost.

Values are YAML; keys are the configuration's own, dotted. A trial's *values* are a dict of such keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from lingu_ray import commands
from lingu_ray.config import Config, Section
from lingu_ray.config.base import FolderName, duplicates
from lingu_ray.config.command_line import read_named
from lingu_ray.config.facts import SEARCHABLE
from lingu_ray.config.settings import Settings, changed
from lingu_ray.config.tracking import check_name
from lingu_ray.config.tree import has, settings_with
from lingu_ray.errors import UserError

Values = dict[str, Any]

SCHEDULED = ("distill.temperature", "distill.w_ce", "distill.w_kd")
CASE, SEED = "case", "_seed"
"""What Ray Tune draws beside settings. It varies the key that sorts first fastest: here the seeds of one setting."""
_CHECKED_TOGETHER = 2000
"""Combinations up to which all are checked; beyond, each value beside the first ones of the others."""


def _check_dotted(where: str, given: Mapping[str, Any]) -> None:
    """Refuse a section of the configuration in place of its keys: each is searched for itself."""
    for key, inside in given.items():
        if key in Config.model_fields and isinstance(inside, dict) and not inside.keys() & Domain.model_fields.keys():
            name = next(iter(inside), "…")
            raise ValueError(f"{where}: {key} is a section: write its keys with dots, {key}.{name}: …")


def searchable(key: str) -> bool:
    """Whether trials may differ in a setting; a whole part of a run (`train`) is none."""
    return has(SEARCHABLE, key) and "." in key


class Domain(Section):
    """Where a setting's values come from: exactly one of the four."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these, drawn for every trial")
    grid: tuple[Any, ...] | None = Field(None, min_length=1, description="each of these, with everything else")
    uniform: tuple[float, float] | None = Field(
        None, description="between low and high; whole numbers where the setting is one"
    )
    loguniform: tuple[float, float] | None = Field(None, description="between low and high, its logarithm uniform")

    @model_validator(mode="after")
    def _one(self) -> Domain:
        if len(self.given) != 1:
            raise ValueError("give exactly one of choice, grid, uniform, loguniform")
        if self.grid is not None and (twice := [value for value in self.grid if self.grid.count(value) > 1]):
            raise ValueError(f"grid: {twice[0]} is there twice, and would run alike; `seeds` repeats under other seeds")
        for name in ("uniform", "loguniform"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(f"{name}: low must be below high, found {list(bounds)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform: low must be above 0, found {self.loguniform[0]:g}")
        return self

    @property
    def given(self) -> list[str]:
        """The one kind that was given, in a list."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The values of `choice` and `grid`; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All listed values, or both ends of a range."""
        return self.listed or self.uniform or self.loguniform or ()


class AshaConfig(Section):
    """Early stopping: asynchronous successive halving on the validation cross-entropy."""

    grace: PositiveInt | None = Field(None, description="steps that every trial gets; null: train.validate_every")
    reduction: float = Field(3.0, gt=1, description="at each rung the best 1/reduction continue")


class PbtConfig(Section):
    """Population-based training: finds schedules of τ and weights; the worst trials resume from copies of the best."""

    interval: PositiveInt = Field(description="steps between two comparisons of the population")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the population that is replaced, and copied")
    resample: float = Field(0.25, ge=0, le=1, description="chance of a fresh draw instead of a factor of 0.8 or 1.2")


class Space(Section):
    """A sweep."""

    name: FolderName = Field(description="the sweep's folder and MLflow run name")
    base: str = Field(description="recipe or YAML file that every trial starts from")
    settings: Values = Field(
        {}, description="settings of the base recipe for every trial, dotted or as sections; what is not named stays"
    )
    search: dict[str, Domain] = Field({}, description="dotted key: one of choice, grid, uniform, loguniform")
    cases: dict[str, Values] = Field({}, description="named bundles of settings; each is run with everything searched")
    seeds: PositiveInt = Field(1, description="seeds each setting is run with, from the base's on")
    trials: PositiveInt | None = Field(
        None, description="draws; grid values, cases and seeds multiply them. null: 1 where nothing is drawn, else 16"
    )
    hours: float | None = Field(None, gt=0, description="all trials are stopped early after that long; null: no limit")
    algorithm: Literal["random", "optuna"] = Field("random", description="how values are drawn; optuna: TPE")
    objectives: tuple[Literal["recovery", "retention"], ...] = Field(
        ("recovery",), min_length=1, description="what is maximized; both: optuna looks for the Pareto front"
    )
    min_retention: float = Field(
        0.99, ge=0, le=2, description="constraint: retention from which a setting counts as good"
    )
    asha: AshaConfig | None = Field(None, description="stop poor trials early; null: off")
    pbt: PbtConfig | None = Field(None, description="population-based training of schedules; null: off")
    concurrent: PositiveInt | None = Field(None, description="trials at once; null: as many as the cluster holds")
    retries: int = Field(1, ge=0, description="times a failed trial is run again before it is marked")
    keep_models: PositiveInt = Field(
        1,
        description="trained models kept: of the best settings one each, of its best seed. Another is removed once all "
        "seeds of its setting have ended; its scores stay. Of a trial that was stopped early it is its checkpoints, "
        "removed when the sweep is over",
    )

    @model_validator(mode="before")
    @classmethod
    def _searched_by_dotted_keys(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("search"), dict):
            _check_dotted("search", given["search"])
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Space:
        if not self.search and not self.cases:
            raise ValueError("nothing to search: give keys under `search`, or `cases`")
        for name, case in self.cases.items():
            check_name("cases", name)
            _check_dotted(f"cases.{name}", case)
        for key in [*self.search, *(key for case in self.cases.values() for key in case)]:
            if not searchable(key):
                raise ValueError(
                    f"{key} cannot be searched: all trials share models, data paths, evaluation and cluster. "
                    f"Searched are keys of {', '.join(sorted(settings_with(SEARCHABLE)))}; "
                    "`settings` sets others for all, `seeds` repeats"
                )
        if self.algorithm == "optuna" and (self.seeds > 1 or any(d.grid for d in self.search.values())):
            raise ValueError("optuna draws its own points: use `choice` in place of `grid`, and seeds: 1")
        if twice := duplicates([*self.objectives]):
            raise ValueError(f"objectives: {twice[0]} is there twice; keep one")
        if len(self.objectives) > 1 and self.algorithm != "optuna":
            raise ValueError("two objectives need `algorithm: optuna`; a random search shows its Pareto front anyway")
        if self.pbt is not None:
            self._check_pbt()
        if self.trials and self.trials > 1 and not self._is_drawn:
            raise ValueError(
                f"trials: {self.trials}, and nothing is drawn: each of the {self.size // self.trials} settings would "
                f"run {self.trials} times alike; leave `trials` out, or repeat under other seeds by `seeds`"
            )
        return self

    def _check_pbt(self) -> None:
        others = sorted(set(self.search) - set(SCHEDULED))
        if others or self.cases or self.seeds > 1 or self.asha or self.algorithm == "optuna":
            raise ValueError(
                f"pbt searches schedules of {', '.join(SCHEDULED)} alone, without cases, seeds, asha and optuna"
                + (f"; found {', '.join(others)}" if others else "")
            )
        if any(domain.grid for domain in self.search.values()):
            raise ValueError("pbt draws values: use choice, uniform or loguniform in place of grid")
        if self.trials == 1:
            raise ValueError("pbt compares the trials of a population: give 2 trials or more")

    @property
    def _is_drawn(self) -> bool:
        return self.algorithm == "optuna" or any(domain.grid is None for domain in self.search.values())

    @property
    def different_draws(self) -> float:
        """How many draws there are that differ; infinite where one is from a range."""
        ranges = [domain for domain in self.search.values() if domain.listed is None]
        listed = [{repr(value) for value in domain.choice} for domain in self.search.values() if domain.choice]
        cases = len(self.cases) or 1 if self.algorithm == "optuna" else 1
        return math.inf if ranges else cases * math.prod(map(len, listed))

    @property
    def draws(self) -> int:
        """How often values are drawn."""
        return self.trials or (16 if self._is_drawn else 1)

    @property
    def size(self) -> int:
        """How many trials there are in all."""
        if self.algorithm == "optuna":
            return self.draws
        grids = [len(domain.grid) for domain in self.search.values() if domain.grid]
        return self.draws * self.seeds * max(1, len(self.cases)) * math.prod(grids)


def shipped() -> dict[str, str]:
    """Name of every space in the package, with the first line of its comment."""
    return commands.shipped("tuning", "spaces")


def read_space(name: str) -> Settings[Space]:
    """A space of the package by name, or a YAML file by path. Raises UserError for a run's settings, too."""
    space = read_named(name, "space", "tuning", Space)
    if "base" not in space.tree and {"student", "teacher", "corpus", "demo"} & space.tree.keys():
        raise UserError(f"{name}: settings of a run, which a space is searched for: lingu-ray sweep kd base={name}")
    return space


def configure(base: Config, values: Mapping[str, Any], origin: str) -> Config:
    """The base with some settings changed; raises UserError for what does not fit, naming `origin`."""
    return changed(base, values, origin).validate()


def is_whole(key: str, domain: Domain, base: Config) -> bool:
    """Whether the values of a range are whole numbers, as the setting's are.

    Raises:
        UserError: the ends do not fit the setting, or it is no number at all.
    """
    bounds = domain.uniform or domain.loguniform
    if bounds is None:
        return False
    settings = changed(base, {key: bounds[0]}, "search")
    value: Any = settings.validate()
    for part in settings.key(key, "search"):
        value = getattr(value, str(part)) if isinstance(value, Section) else value[part]
    if isinstance(value, bool):
        raise UserError(f"search: {key} is true or false, not a range: {key}: {{choice: [true, false]}}")
    return isinstance(value, int)


def seeded(config: Config, base: Config, seed: int) -> Config:
    """The configuration under another seed: of the run, and with it of the order of the corpus."""
    corpus = config.corpus.model_copy(update={"seed": config.corpus.seed + seed - base.seed})
    return config.model_copy(update={"seed": seed, "corpus": corpus})


def seeds_of(space: Space, base: Config) -> list[int]:
    """The seeds each setting is run with."""
    return [base.seed + offset for offset in range(space.seeds)]


def drawn_seed(drawn: Mapping[str, Any], base: Config) -> int:
    """The seed in what Ray Tune drew; sweeps that an earlier version started have it under `seed`."""
    return drawn.get(SEED, drawn.get("seed", base.seed))


def corner_values(space: Space) -> Iterator[Values]:
    """All combinations of listed values, ends of ranges and cases; where they are too many, one changed at a time."""
    axes: list[list[Values]] = [[{key: value} for value in d.extremes] for key, d in space.search.items()]
    axes.insert(0, list(space.cases.values()) or [{}])
    if math.prod(map(len, axes)) <= _CHECKED_TOGETHER:
        yield from (merge(parts) for parts in itertools.product(*axes))
        return
    first = [axis[0] for axis in axes]
    for place, axis in enumerate(axes):
        for values in axis:
            yield merge([*first[:place], values, *first[place + 1 :]])


def merge(parts: list[Values] | tuple[Values, ...]) -> Values:
    """One dict of all."""
    return {key: value for part in parts for key, value in part.items()}


def decode(space: Space, drawn: Mapping[str, Any]) -> Values:
    """The values behind what Ray Tune drew: listed values and cases are drawn by position."""
    values = dict(space.cases[drawn[CASE]]) if CASE in drawn else {}
    for key, domain in space.search.items():
        values[key] = domain.listed[drawn[key]] if domain.listed is not None else drawn[key]
    return values
