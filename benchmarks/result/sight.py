"""Ask the models of the rows for sentences about pictures that no training row shows: what do the pictures tell them?

python -m benchmarks.result.sight                      all that were measured here
python -m benchmarks.result.sight medium-natural-0     one comparison: damage, data and seed

What `lingu-ray probe benchmarks/result/recipes/sight.yaml` asks, of every model of a comparison but the teacher, which
has no eyes. A model that was asked after it was made is not asked again. benchmarks.result.page shows what was found.
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
from benchmarks.result.seeds import Measured, Seeds, map_cells, nats
from benchmarks.result.table import RECIPES, SIZES, Comparison, SizeName, comparisons
from lingu_ray.atomic import write_json
from lingu_ray.config import Section
from lingu_ray.config.command_line import read_run, read_settings, split_arguments
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.roles import TEACHER
from lingu_ray.preview.knowledge import Known
from lingu_ray.probe import ProbeConfig, ask
from lingu_ray.report.plots import save_panels

ROWS = 128
_KNOWN = TypeAdapter(list[Known])


class SightConfig(Section):
    """Settings of the command."""

    size: SizeName = Field("cores", description="rows of which size, as benchmarks.result.rows has them")


HELP = Help("python -m benchmarks.result.sight [COMPARISON ...] [key=value ...]", __doc__, SightConfig)


def main(arguments: list[str]) -> None:
    """Ask what was not asked yet, and print what pictures tell each model."""
    names, settings, _ = split_arguments(arguments, HELP)
    size = SIZES[read_settings(settings, SightConfig).size]
    there = {one.name: one for one in comparisons(size) if len(compared(one)) > 1}
    for name in names:
        if name not in there:
            raise UserError(f"no models of a comparison {name!r} are here; there are: {', '.join(there) or 'none'}")
    for name in names or there:
        for model, path in compared(there[name]).items():
            if model != TEACHER:
                ask_model(there[name], model, path)


def ask_model(one: Comparison, model: str, path: Path) -> None:
    """Ask a model, unless that was done; what another comparison asked it counts."""
    file, made = asked_file(one, model), path.stat().st_mtime
    places = (asked_file(other, model) for other in comparisons(one.size) if compared(other).get(model) == path)
    asked = next((place for place in places if place.exists() and place.stat().st_mtime >= made), None)
    if asked is None:
        config = read_run(str(RECIPES / "sight.yaml"), [f"student.path={path}"])
        found = list(ask(config, config.corpus.sources, ProbeConfig(rows=ROWS)))
        write_json(file, [asdict(known) for known in found])
        print(f"{one.name} {model}: pictures tell {', '.join(map(_told, found))} nats a token", flush=True)
    elif asked != file:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(asked, file)


def _told(known: Known) -> str:
    told = known.pictures_tell_student
    return f"{known.source} {'nothing' if told is None else f'{told.value:.3f}'}"


def asked_file(one: Comparison, model: str) -> Path:
    """Where a model's answers are kept."""
    return measured_folder(one) / SIGHT / f"{model}.json"


def publish(one: Comparison, out: Path) -> dict[str, dict[str, Known]]:
    """Copy what was found here beside the page; returns all that lies there of a comparison, by model and source."""
    folder = out / SIGHT / one.name
    if (measured_folder(one) / SIGHT).exists():
        shutil.copytree(measured_folder(one) / SIGHT, folder, dirs_exist_ok=True)
    files = sorted(folder.glob("*.json"))
    return {file.stem: {known.source: known for known in _KNOWN.validate_json(file.read_bytes())} for file in files}


def sight_section(measured: Sequence[Measured], out: Path) -> str:
    """What held-out pictures tell the models that say sentences about them, and how well they say them."""
    found: dict[tuple[str, str], list[dict[str, Known]]] = {}
    for results in map_cells(measured):
        seeds = [publish(one.comparison, out) for one in results.measured]
        for model in results.models:
            if of_model := [by_model[model] for by_model in seeds if model in by_model]:
                found[results.name, model] = of_model
    if not found:
        return ""
    sources = dict.fromkeys(source for seeds in found.values() for one in seeds for source in one)
    told = {source: {row: _seeds(seeds, source)[0] for row, seeds in found.items()} for source in sources}
    shown = {source: {row: seeds for row, seeds in rows.items() if seeds.found} for source, rows in told.items()}
    save_panels([sight_panel(source, rows) for source, rows in shown.items()], out / "sight.png")
    head = [f"{source}: {what}" for source in sources for what in ("pictures tell", "in all")]
    note = "Nats a token: how much worse a model says a sentence with another row's picture, and what it costs in all."
    lines = [
        row_line(
            f"{cell}, {shown_name(model)}", [one.text(nats) for source in sources for one in _seeds(seeds, source)]
        )
        for (cell, model), seeds in found.items()
    ]
    picture = "![What pictures tell in sentences](sight.png)"
    return "\n".join(
        ["## Sight in sentences", "", picture, "", note, "", *table_head(["damage, data, model", *head]), *lines]
    )


def _seeds(found: Sequence[Mapping[str, Known]], source: str) -> tuple[Seeds, Seeds]:
    """Of one model what pictures tell it in a source, and what the sentences cost in all, by seed."""
    of_source = [one[source] for one in found if source in one]
    told = (one.pictures_tell_student for one in of_source)
    return Seeds(tuple(one for one in told if one is not None)), Seeds(tuple(one.student for one in of_source))


if __name__ == "__main__":
    run_command(main)
