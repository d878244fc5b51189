"""Tasks of lm-evaluation-harness (the extra `lm-eval`), by name: its requests become items, and it scores the answers.

The harness builds a task, examples included; each document's requests are an item, as raw text. Its own
filters and `process_results` compute the scores from the kept answers, with the harness and the task's data.
An item's score is the task's main metric: acc_norm, acc or exact_match where it has one, else its first mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingu_ray.config import TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import GenerateRequest, ScoreRequest
from lingu_ray.evaluation.metrics.metric import Columns, Scores
from lingu_ray.evaluation.tasks.task import Asked, Item, Reference, Scored
from lingu_ray.paths import ask_hub

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task as HarnessTask
    from lm_eval.tasks import TaskManager

MAIN = ("acc_norm", "acc", "exact_match")
SEED = 1234  # of the examples; the harness's own default

Requests = list["Instance"]  # of one document


@dataclass(frozen=True)
class Continued(Asked):
    """A raw text to continue: no chat template, and the task's own stop texts."""

    max_new_tokens: int
    stop: tuple[str, ...]

    def request(self, config: TaskConfig) -> GenerateRequest:
        """What the engine is asked."""
        return GenerateRequest(self.prompt, (), self.max_new_tokens, self.stop, chat=False)


def harness_items(config: TaskConfig) -> Iterator[Item]:
    """The items of a task of the harness, in the order of its documents, at most `limit`.

    Raises:
        UserError: the harness is not installed, has no such task or cannot build it; the task needs images, samples
            its answers, runs what a model writes, or has no metric that is a mean over items.
    """
    task = _task(config.path)
    reference = {"task": config.path, "metric": main_metric(task, config.path)}
    documents = len(task.eval_docs)
    for requests in _requests(config.path, min(config.limit or documents, documents)):
        yield _item(config.path, requests, reference, _quotable(task, requests[0].doc))


def judge_by_harness(columns: Columns) -> Scores:
    """The main metric of each item; `extra`: the task's other means, and those by its other filters.

    Raises:
        UserError: the harness is not installed, the task's data is not what it was, or an item has no main metric.
    """
    path, metric = columns["task"][0], columns["metric"][0]
    task, requests = _task(path), _requests(path, len(columns["item"]))
    if len(requests) < len(columns["item"]):
        raise UserError(f"lm_eval/{path}: its data is not what it was when models were measured; evaluate again")
    answered = [
        [replace(request, resps=[answer], filtered_resps={}) for request, answer in zip(*of_item, strict=True)]
        for of_item in zip(requests, _answers(columns), strict=True)
    ]
    levels = _levels(task, answered)
    main = next((name for name in levels if name.partition(",")[0] == metric), None)
    if main is None:
        raise UserError(f"lm_eval/{path}: the task gives its metric {metric} for some items only: not supported")
    return Scores(levels.pop(main), [1.0] * len(requests), levels)


def _answers(columns: Columns) -> Iterator[list[Any]]:
    """The kept answers of each item, as the harness's own models give them."""
    if "prediction" in columns:
        yield from ([prediction] for prediction in columns["prediction"])
    else:
        for logliks, greedy in zip(columns["logliks"], columns["greedy"], strict=True):
            yield list(zip(logliks, greedy, strict=True))


def _levels(task: HarnessTask, answered: list[Requests]) -> dict[str, list[float]]:
    """Every mean that all items have, an entry an item; its name has the filter's, where there are several."""
    task._instances = [request for of_item in answered for request in of_item]  # where the harness reads them
    task.apply_filters()
    filters, means = list(answered[0][0].filtered_resps), _means(task)
    levels: dict[str, list[float]] = {}
    for of_item in answered:
        for key in filters:
            scores = task.process_results(of_item[0].doc, [request.filtered_resps[key] for request in of_item])
            for metric in means:
                if metric in scores:
                    name = metric if len(filters) == 1 else f"{metric},{key}"
                    levels.setdefault(name, []).append(float(scores[metric]))
    return {name: level for name, level in levels.items() if len(level) == len(answered)}


def _quotable(task: HarnessTask, doc: Any) -> tuple[str, ...]:
    """Question and right answer of a document, once for each right answer, without the examples before it."""
    target = task.doc_to_target(doc)
    question, answers = _text(task, doc, task.doc_to_text(doc)), target if isinstance(target, list) else [target]
    return tuple(f"{question} {_text(task, doc, answer)}" for answer in answers)


def _text(task: HarnessTask, doc: Any, said: Any) -> str:
    """What the harness says of a document, which may be the index of one of its choices."""
    if not isinstance(said, int) or task.config.doc_to_choice is None:
        return str(said)
    choices = task.doc_to_choice(doc)
    return choices[said] if 0 <= said < len(choices) else ""


def _item(path: str, requests: Requests, reference: Reference, quotable: tuple[str, ...]) -> Item:
    name = str(requests[0].doc_id)
    kinds = {request.request_type for request in requests}
    if kinds == {"loglikelihood"}:
        return Scored(name, tuple(ScoreRequest(*request.args) for request in requests), reference, quotable)
    if kinds != {"generate_until"} or len(requests) > 1:
        raise UserError(f"lm_eval/{path}: the task asks {' and '.join(sorted(kinds))} of one item: not supported")
    from lm_eval.models.utils import normalize_gen_kwargs

    prompt, given = requests[0].args
    settings = normalize_gen_kwargs(given)
    if settings["do_sample"] or requests[0].repeats != 1:
        raise UserError(f"lm_eval/{path}: the task samples its answers, and here they are greedy: not supported")
    return Continued(name, prompt, (), reference, quotable, settings["max_gen_toks"], tuple(settings["until"]))


def main_metric(task: HarnessTask, path: str) -> str:
    """The metric that is an item's score.

    Raises:
        UserError: none is a mean over items of which more is better.
    """
    means = _means(task)
    if not means:
        raise UserError(
            f"lm_eval/{path}: none of its metrics ({', '.join(task.aggregation())}) is a mean over items of which more "
            "is better; for perplexity there is type perplexity"
        )
    return next((metric for metric in MAIN if metric in means), means[0])


def _means(task: HarnessTask) -> list[str]:
    """The task's metrics that are a mean over items, and better when higher."""
    from lm_eval.api.metrics import mean

    higher = task.higher_is_better()
    return [metric for metric, aggregate in task.aggregation().items() if aggregate is mean and higher[metric]]


@lru_cache(maxsize=8)
def _requests(path: str, count: int) -> list[Requests]:
    """The requests of each of the first `count` documents."""
    task = _task(path)
    task.set_fewshot_seed(SEED)
    task.build_all_requests(limit=count)
    return [list(of_item) for _, of_item in groupby(task.instances, key=lambda request: request.doc_id)]


@cache
def _task(path: str) -> HarnessTask:
    tasks = manager()
    if not Path(path).is_file() and path not in tasks.all_subtasks:
        if path in tasks.all_tasks:
            raise UserError(f"lm_eval/{path} is a group of tasks: name the tasks of it that you need")
        near = difflib.get_close_matches(path, tasks.all_subtasks, n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"lm_eval/{path}: lm-evaluation-harness has no such task{meant}")
    if not Path(path).is_file():
        ask_hub(f"lm_eval/{path}", "its data")
    try:
        (task,) = tasks.load([path])["tasks"].values()
    except Exception as error:  # a task has its own code, and downloads its data
        raise UserError(f"lm_eval/{path}: lm-evaluation-harness cannot build it: {error!r}") from error
    if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"lm_eval/{path}: the task needs images or sound, or runs what a model writes: not supported")
    return task


@cache
def manager() -> TaskManager:
    """The tasks that the harness has. Listing them takes seconds; it is done once."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"tasks of lm_eval need the extra lm-eval: pip install 'lingu-ray[lm-eval]' ({error})"
        ) from error
    return TaskManager()
