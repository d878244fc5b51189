"""Measure how much unseen pictures help the models of the rows to say sentences about them.

python -m benchmarks.result.sight                      all that were measured here
python -m benchmarks.result.sight medium-natural-0     one comparison: damage, data and seed

It runs `lingu-ray probe benchmarks/result/recipes/sight.yaml` for every model of a comparison except the text-only
teacher. A model that was asked after it was made is not asked again. benchmarks.result.page shows the results.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import Field, TypeAdapter

from benchmarks.result.figures import shown_name, sight_panel
from benchmarks.result.jobs import compared, measured_folder
from benchmarks.result.manifest import SIGHT
from benchmarks.result.markdown import row_line, table_head
from benchmarks.result.seeds import Measured, Seeds, map_cells, nats, over_trainings
from benchmarks.result.table import RECIPES, SIZES, Comparison, SizeName, comparisons
from lingu_ray.atomic import write_json
from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings, read_run
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.results import Estimate
from lingu_ray.evaluation.roles import DISTILLED, TEACHER
from lingu_ray.preview.knowledge import Known
from lingu_ray.probe import ProbeConfig, ask
from lingu_ray.report.plots import save_panels

ROWS = 128
_KNOWN = TypeAdapter(list[Known])
BySeed = Mapping[int, Mapping[str, Known]]


class SightConfig(Section):
    """Settings of the command."""

    size: SizeName = Field("cores", description="rows of which size, as benchmarks.result.rows has them")


HELP = Help("python -m benchmarks.result.sight [COMPARISON ...] [key=value ...]", __doc__, SightConfig)


def main(arguments: list[str]) -> None:
    """Ask the models that were not asked yet, and print how much pictures tell them."""
    names, options = names_and_settings(arguments, HELP)
    size = SIZES[options.size]
    there = {one.name: one for one in comparisons(size) if len(compared(one)) > 1}
    for name in names:
        if name not in there:
            raise UserError(f"no models of a comparison {name!r} are here; there are: {', '.join(there) or 'none'}")
    for name in names or there:
        for model, path in compared(there[name]).items():
            if model != TEACHER:
                ask_model(there[name], model, path)


def ask_model(one: Comparison, model: str, path: Path) -> None:
    """Ask a model, unless this or another comparison has asked it already."""
    file, made = asked_file(one, model), path.stat().st_mtime
    places = (asked_file(other, model) for other in comparisons(one.size) if compared(other).get(model) == path)
    asked = next((place for place in places if place.exists() and place.stat().st_mtime >= made), None)
    if asked is None:
        config = read_run(str(RECIPES / "sight.yaml"), [f"student.path={path}"])
        found = list(ask(config, config.corpus.sources, ProbeConfig(rows=ROWS)))
        write_json(file, [asdict(known) for known in found])
        print(f"{one.name} {model}: pictures tell {', '.join(map(_printed, found))} nats a token", flush=True)
    elif asked != file:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(asked, file)


def _printed(known: Known) -> str:
    told = known.pictures_tell_student
    return f"{known.source} {'nothing' if told is None else f'{told.value:.3f}'}"


def asked_file(one: Comparison, model: str) -> Path:
    """The file of a model's answers."""
    return measured_folder(one) / SIGHT / f"{model}.json"


def publish(one: Comparison, out: Path) -> dict[str, dict[str, Known]]:
    """Copy a comparison's answers from here beside the page; returns all that lie there, by model and source."""
    folder = out / SIGHT / one.name
    if (measured_folder(one) / SIGHT).exists():
        shutil.copytree(measured_folder(one) / SIGHT, folder, dirs_exist_ok=True)
    files = sorted(folder.glob("*.json"))
    return {file.stem: {known.source: known for known in _KNOWN.validate_json(file.read_bytes())} for file in files}


def sight_section(measured: Sequence[Measured], out: Path) -> str:
    """How much held-out pictures help the models with sentences about them, and what the sentences cost in all."""
    found: dict[tuple[str, str], BySeed] = {}
    for results in map_cells(measured):
        asked = {one.comparison.seed: publish(one.comparison, out) for one in results.measured}
        for model in results.models:
            if of_model := {seed: models[model] for seed, models in asked.items() if model in models}:
                found[results.name, model] = of_model
    if not found:
        return ""
    sources = dict.fromkeys(source for seeds in found.values() for one in seeds.values() for source in one)
    panels = []
    for source in sources:
        told = {row: tuple(_told(seeds, source).values()) for row, seeds in found.items()}
        panels.append(sight_panel(source, {row: Seeds(values) for row, values in told.items() if values}))
    save_panels(panels, out / "sight.png")
    ahead = f"{shown_name(DISTILLED)} − it, over trainings"
    head = [f"{source}: {what}" for source in sources for what in ("pictures tell", ahead, "in all")]
    note = (
        "Nats a token: how much worse a model says a sentence with another row's picture, and what it costs in all. "
        "Over trainings: mean and 95% interval by Student's t."
    )
    lines = [
        row_line(
            f"{cell}, {shown_name(model)}",
            [one for source in sources for one in _cells(seeds, found.get((cell, DISTILLED), {}), source)],
        )
        for (cell, model), seeds in found.items()
    ]
    picture = "![What pictures tell in sentences](sight.png)"
    return "\n".join(
        ["## Sight in sentences", "", picture, "", note, "", *table_head(["damage, data, model", *head]), *lines]
    )


def _cells(model: BySeed, method: BySeed, source: str) -> list[str]:
    """For one source: what pictures tell a model, the lead of the method's model, and what sentences cost in all."""
    told, of_method = _told(model, source), _told(method, source)
    more = [of_method[seed].value - told[seed].value for seed in told if seed in of_method]
    ahead = "" if model is method else over_trainings(more, nats)
    cost = Seeds(tuple(one[source].student for one in model.values() if source in one))
    return [Seeds(tuple(told.values())).text(nats), ahead, cost.text(nats)]


def _told(found: BySeed, source: str) -> dict[int, Estimate]:
    """What pictures tell a model in a source, by seed."""
    told = {seed: one[source].pictures_tell_student for seed, one in found.items() if source in one}
    return {seed: value for seed, value in told.items() if value is not None}


if __name__ == "__main__":
    run_command(main)
