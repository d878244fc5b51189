"""Whether a space fits its base: every value that a trial may have, what stops trials, and what they hold out."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from random import Random
from typing import Any

from lingu_ray.config import Config, CorpusConfig, SourceConfig
from lingu_ray.config.facts import SAME_HELD_OUT, fields_with
from lingu_ray.config.settings import changed
from lingu_ray.errors import UserError
from tuning.space import Domain, Space, Values, configure, corner_values, is_whole

log = logging.getLogger(__name__)

_DRAWS_CHECKED = 64
Tried = tuple[Values, Config]
"""Values of a trial, and its configuration."""


def check(space: Space, base: Config) -> None:
    """Every key and value against the typed configuration; raises UserError with the first that does not fit."""
    if space.pbt and isinstance(base.output_dir, str):
        raise UserError(
            f"output_dir={base.output_dir}: pbt copies checkpoints from trial to trial, in folders: give output_dir a "
            "folder on storage that all nodes share, or leave pbt out"
        )
    _check_one_origin(space, base)
    _check_cases_differ(space, base)
    corners, draws = list[Tried](), list[Tried]()
    for values in corner_values(space):
        config = configure(base, values, space.name)
        corners.append((values, config))
        if space.pbt and any(isinstance(v, dict) for v in values.values()):
            raise UserError(f"{space.name}: pbt makes the schedules itself: give numbers")
        _check_stopping(space, config)
        if space.asha and config.train.steps != base.train.steps:
            raise UserError(
                f"{space.name}: asha compares trials at equal steps, at which those of another train.steps are "
                "elsewhere in their schedules: leave asha out, or set train.steps for all under `settings`"
            )
    for values in _draws(space, base):
        try:
            draws.append((values, configure(base, values, space.name)))
        except UserError as error:
            raise UserError(f"{error}, as a draw from search: list what fits by `choice` or `grid`") from error
    _check_effect(space, corners, draws or corners)


def _check_effect(space: Space, corners: list[Tried], trials: list[Tried]) -> None:
    """Refuse a key that has no effect whatever the others are, and tell of one that has none in some of the trials."""
    for key, needs in _needs(corners).items():
        if None not in needs:
            raise UserError(f"{space.name}: {key} has no effect in any trial: it {needs[0]}")
    for key, needs in _needs(trials).items():
        if without := [need for need in needs if need is not None]:
            log.warning("%s has no effect in some trials, which train alike whatever it is: it %s", key, without[0])


def _needs(tried: list[Tried]) -> dict[str, list[str | None]]:
    """By key, for each of the combinations that have it: what it needs to have an effect; None where it has one."""
    found: dict[str, list[str | None]] = {}
    for values, config in tried:
        unread = config.unread()
        for key in values:
            found.setdefault(key, []).append(unread[key][1] if key in unread else None)
    return found


def _check_one_origin(space: Space, base: Config) -> None:
    """Refuse two keys of one setting, which may be named by its section, and an item of a list by name and position."""
    settings = changed(base, {}, space.name)
    for case in [{}, *space.cases.values()]:
        keys = [(dotted, settings.key(dotted, space.name)) for dotted in (*space.search, *case)]
        for (one, key), (other, another) in itertools.combinations(keys, 2):
            if key[: len(another)] == another[: len(key)]:
                twice = one if one == other else f"{one} and {other}"
                raise UserError(f"{space.name}: {twice}: set twice; keep one, under `search` or in `cases`")


def _check_cases_differ(space: Space, base: Config) -> None:
    """Refuse two cases of which every trial would have the same settings."""
    configured = {name: configure(base, case, space.name) for name, case in space.cases.items()}
    for one, other in itertools.combinations(configured, 2):
        if configured[one] == configured[other]:
            raise UserError(
                f"{space.name}: cases: {one} and {other} are the same settings, and would run alike: leave one out; "
                "`seeds` repeats under other seeds"
            )


def _draws(space: Space, base: Config) -> Iterator[Values]:
    """Some draws, as trials get them: between the ends of a range there may be values that do not fit."""
    chance = Random(0)
    whole = {key for key, domain in space.search.items() if is_whole(key, domain, base)}
    for _ in range(_DRAWS_CHECKED if any(domain.listed is None for domain in space.search.values()) else 0):
        case = chance.choice(list(space.cases.values()) or [{}])
        yield case | {key: _draw(domain, key in whole, chance) for key, domain in space.search.items()}


def _draw(domain: Domain, whole: bool, chance: Random) -> Any:
    if domain.listed is not None:
        return chance.choice(domain.listed)
    if domain.uniform is not None:
        value = chance.uniform(*domain.uniform)
    else:
        assert domain.loguniform is not None
        low, high = domain.loguniform
        value = math.exp(chance.uniform(math.log(low), math.log(high)))
    return round(value) if whole else value


def _check_stopping(space: Space, config: Config) -> None:
    if space.asha and not (config.train.validate_every and config.corpus.validation_rows):
        raise UserError(
            f"{space.name}: asha compares trials by validation as they go: "
            "set train.validate_every and corpus.validation_rows above 0"
        )
    if space.pbt and not config.corpus.validation_rows:
        raise UserError(f"{space.name}: pbt compares trials by validation: set corpus.validation_rows above 0")
    steps, asha, pbt = config.train.steps, space.asha, space.pbt
    if asha and (first := asha.grace or config.train.validate_every) >= steps:
        raise UserError(
            f"{space.name}: asha would compare trials at step {first} first, and they have {steps}: lower asha.grace "
            "or train.validate_every, or leave asha out"
        )
    if pbt and pbt.interval >= steps:
        raise UserError(
            f"{space.name}: pbt.interval={pbt.interval} leaves nothing to adapt in {steps} steps: lower it, or leave "
            "pbt out"
        )


def check_held_out(space: Space, base: Config) -> None:
    """Refuse trials that are stopped by their validation, and do not hold out the same rows for it; raises UserError.

    `base`: with its sources, those of the demo too.
    """
    if space.asha is None:
        return
    first, *others = (_held_out_by(configure(base, values, space.name)) for values in corner_values(space))
    differing = {key: None for other in others for key in (*first, *other) if first.get(key) != other.get(key)}
    if differing:
        raise UserError(
            f"{space.name}: asha compares trials by validation, which would be of other rows in some, since they "
            f"differ in {', '.join(differing)}: leave asha out, or search that in a sweep of its own"
        )


def _held_out_by(config: Config) -> dict[str, Any]:
    """What the rows that a trial holds out for validation follow from, by name; the settings of a source together."""
    corpus = config.corpus.model_dump(exclude={"sources", *fields_with(SAME_HELD_OUT, CorpusConfig)})
    sources = {
        f"source {source.name}": source.model_dump(exclude=fields_with(SAME_HELD_OUT, SourceConfig))
        for source in config.training_sources()
    }
    return {f"corpus.{key}": value for key, value in corpus.items()} | sources
