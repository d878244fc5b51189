"""The paper's own table: averages by kind of task, of the original VLM, the fine-tuned and the distilled one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from lingu_ray.evaluation.results import Recovery, TaskScores
from lingu_ray.evaluation.roles import DISTILLED, OF_THE_PAPER
from lingu_ray.report.plots import format_number

MODELS = (*OF_THE_PAPER, DISTILLED)


@dataclass(frozen=True)
class PaperRow:
    """One row: the models' mean scores in the order of `MODELS`, and the distilled model's gain over fine-tuning."""

    label: str
    levels: list[str]
    gain: str


def paper_rows(result: Recovery) -> list[PaperRow]:
    """The rows of the table; none where recovery is not measured as in the paper.

    Shares (accuracies) are averaged over the tasks of a kind that count in its mean. Other scores (MME, CIDEr,
    perplexity) have scales of their own, so each task has a row.
    """
    if result.references != OF_THE_PAPER:
        return []
    whole = {name: task for name, task in result.tasks.items() if task.models.keys() >= set(MODELS)}
    rows: list[PaperRow] = []
    averaged = [task for task in whole.values() if task.is_share and task.counted(result.recovery_in).in_mean]
    for kind in ("language", "vision"):
        shares = [task for task in averaged if task.kind == kind]
        if shares:
            rows.append(_row(f"{kind}, average of {len(shares)}", shares, "{:.3f}".format))
    return rows + [_row(name, [task], format_number) for name, task in whole.items() if not task.is_share]


def _row(label: str, tasks: list[TaskScores], shown: Callable[[float], str]) -> PaperRow:
    levels = [fmean(task.models[model].score.value for task in tasks) for model in MODELS]
    _, fine_tuned, distilled = levels
    gain = f"{distilled / fine_tuned - 1:+.1%}" if fine_tuned else "–"
    return PaperRow(label, [shown(level) for level in levels], gain)
