"""Write the results of the rows into docs/results: a page of tables and answers, figures, and each result as JSON.

python -m benchmarks.result.page
python -m benchmarks.result.page size=gpu                into docs/results/gpu

Reads runs/result in the working directory; rows that are not measured yet are left out. Results from another machine
that lie beside the page count, too, and sections that need their runs stay as they are. Only means, standard deviations
and intervals over seeds are computed here.
"""

from __future__ import annotations

import base64
import csv
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from benchmarks.result.ahead import ahead_section, map_section, trainings_section
from benchmarks.result.figures import curve_panels, save_quotients, shown_name
from benchmarks.result.jobs import DATA_MANIFEST, run_folder
from benchmarks.result.markdown import row_line, table_head
from benchmarks.result.seeds import CONTROLS, REFERENCES, Measured, Results, percent, read_measured, written
from benchmarks.result.sight import sight_section
from benchmarks.result.table import SIZES, SWEEPS, Job, Size, SizeName, row
from lingu_ray.atomic import write_text
from lingu_ray.config import Section
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.recovery_json import FILE
from lingu_ray.evaluation.results import QUOTIENTS
from lingu_ray.evaluation.roles import DISTILLED
from lingu_ray.paths import LocalPath
from lingu_ray.report.plots import display_name, save_panels
from lingu_ray.report.samples import Answered, answered

PAGE = "real_pair.md"
ANSWERS_OF_A_TASK = 2
CURVES, SWEEP_TABLES, ANSWERS = "## Curves of the three variants", "## Sweeps", "## Answers side by side"
MAIN = (*REFERENCES, *CONTROLS, DISTILLED, "prompt_text")


class PageConfig(Section):
    """Settings of the command."""

    size: SizeName = Field("cores", description="rows of which size, as benchmarks.result.rows has them")
    out: LocalPath | None = Field(
        None, description="folder of page, figures and results; null: docs/results, for size=gpu docs/results/gpu"
    )

    @property
    def folder(self) -> Path:
        """Where the page is written."""
        return self.out or SIZES[self.size].page


HELP = Help("python -m benchmarks.result.page [key=value ...]", __doc__, PageConfig)


def main(arguments: list[str]) -> None:
    """Write the page, and print where it is."""
    options = settings_alone(arguments, HELP)
    size = SIZES[options.size]
    measured = read_measured(options.folder, size)
    if not measured:
        raise UserError("no row was measured yet: python -m benchmarks.result.rows run")
    print(f"page     {write_page(measured, options.folder, size)}")


def write_page(measured: Sequence[Measured], out: Path, size: Size) -> Path:
    """Write Markdown, figures, the measured results and the manifest of the data; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    for one in measured:
        if one.folder is not None:
            shutil.copyfile(one.folder / FILE, out / f"{one.comparison.name}.json")
    if DATA_MANIFEST.exists():
        shutil.copyfile(DATA_MANIFEST, out / "data.json")
    results = Results.of(measured)
    if not results.measured:
        raise UserError("the method itself was not measured yet: python -m benchmarks.result.rows run main")
    page = out / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    sections = [
        _scores(results),
        _figures(results, out),
        ahead_section(measured),
        trainings_section(measured),
        map_section(measured, out),
        _others(measured),
        sight_section(measured, out),
        _curves(out, size) or _section(before, CURVES),
        _sweeps(size) or _section(before, SWEEP_TABLES),
        _answers(results, out) or _section(before, ANSWERS),
    ]
    write_text(page, "\n\n".join([_head(results), *(text for text in sections if text)]) + "\n")
    return page


def _section(page: str, heading: str) -> str:
    """A section of an earlier page; empty if the page has none."""
    _, found, rest = page.partition(f"{heading}\n")
    text, _, _ = rest.partition("\n## ")
    return f"{heading}\n{text}".rstrip() if found else ""


def _head(results: Results) -> str:
    seeds = ", ".join(str(one.comparison.seed) for one in results.measured)
    verdicts = [f"- seed {one.comparison.seed}: {one.result.verdict.text}" for one in results.measured]
    note = "± is the standard deviation over seeds; of one seed brackets have the 95% interval over items."
    return "\n".join(
        ["# SmolLM2-135M and DINOv2-small: what the rows gave", "", f"Seeds {seeds}. {note}", "", *verdicts]
    )


def _scores(results: Results) -> str:
    main = [model for model in results.models if model in MAIN]
    return "\n".join(["## Main rows", "", *_score_table(results, main)])


def _others(measured: Sequence[Measured]) -> str:
    """Variants and baselines beside the method and its controls, a table for each seed."""
    tables = []
    for one in measured:
        results = Results((one,))
        if others := [model for model in results.models if model not in MAIN]:
            beside = [model for model in results.models if model in (*CONTROLS, DISTILLED)]
            heading = f"### {results.name}, seed {one.comparison.seed}"
            tables += ["", heading, "", *_score_table(results, [*beside, *others])]
    return "\n".join(["## Other rows", *tables]) if tables else ""


def _score_table(results: Results, models: list[str]) -> Iterator[str]:
    """Means, then each task by its metrics, and below a vision task its score without pictures."""
    yield from table_head(["", *map(shown_name, models)])
    for quotient in QUOTIENTS.values():
        yield row_line(f"**mean {quotient}**, %", [results.mean(quotient, model).text(percent) for model in models])
    for name, task in results.tasks():
        metric, shown = written(task)
        yield row_line(f"{name}, {metric}", [results.score(name, task.metric, model).text(shown) for model in models])
        if any(results.blind(name, model).found for model in models):
            yield row_line(f"{name}, without the picture", [results.blind(name, model).text(shown) for model in models])


def _figures(results: Results, out: Path) -> str:
    lines = []
    for kind, quotient in (("language", "recovery"), ("vision", "retention")):
        if save_quotients(results, kind, out / f"{quotient}.png"):
            lines += [f"## {quotient.capitalize()} by task", "", f"![{quotient} by task]({quotient}.png)", ""]
    return "\n".join(lines).rstrip()


def _curves(out: Path, size: Size) -> str:
    if not (panels := curve_panels(size)):
        return ""
    save_panels(panels, out / "curves.png")
    return f"{CURVES}\n\n![CE and KD over the steps](curves.png)"


def _sweeps(size: Size) -> str:
    """The sweeps' tables with a row for each trial; empty without sweeps on this machine."""
    tables = [_sweep(Job(row(name), 0, size)) for name in SWEEPS]
    return "\n\n".join([SWEEP_TABLES, *(table for table in tables if table)]) if any(tables) else ""


def _sweep(job: Job) -> str:
    path = run_folder(job).report / "table.csv"
    if not path.exists():
        return ""
    head, *trials = csv.reader(path.read_text(encoding="utf-8").splitlines())
    rows = (row_line(trial[0], [_shortened(cell) for cell in trial[1:]]) for trial in trials)
    return "\n".join([f"{job.row.about}, the runs of `{job.row.recipe}.yaml`:", "", *table_head(head), *rows])


def _shortened(cell: str) -> str:
    """A number with four digits; anything else as it is."""
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def _answers(results: Results, out: Path) -> str:
    """The first questions about pictures with the models' answers, of the first seed on this machine."""
    here = [(one.folder, one.result) for one in results.measured if one.folder is not None]
    if not here:
        return ""
    found = answered(*here[0])
    rows = [one for one in found.rows if one.images]
    chosen = [one for task in dict.fromkeys(one.origin for one in rows) for one in _of_task(rows, task)]
    if not chosen:
        return ""
    columns = {display_name(model): shown_name(model) for model in results.models if model in MAIN}
    headings = [heading for heading in columns if any(heading in one.answers for one in chosen)]
    lines = [
        ANSWERS,
        "",
        *table_head(["picture", "question", "right", *(columns[heading] for heading in headings)]),
    ]
    for place, one in enumerate(chosen):
        said = [one.answers.get(heading, "–") for heading in headings]
        lines.append(row_line(_saved(one, out / f"answer_{place}.jpg"), [one.asked, one.expected, *said]))
    return "\n".join(lines)


def _of_task(rows: list[Answered], task: str) -> list[Answered]:
    return [one for one in rows if one.origin == task][:ANSWERS_OF_A_TASK]


def _saved(one: Answered, path: Path) -> str:
    """Write the picture of a question beside the page; returns it as Markdown."""
    path.write_bytes(base64.b64decode(one.images[0].partition(";base64,")[2]))
    return f"![{one.origin}]({path.name})"


if __name__ == "__main__":
    run_command(main)
