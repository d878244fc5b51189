"""Score the items of one task with one engine.

Every metric is `Σ score / Σ weight` over items, so one bootstrap serves them all: multiple choice and exact match have
score 0 or 1 and weight 1; perplexity has nats and tokens, and its level is the log-perplexity, nats per token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingu_ray.evaluation.engine import Engine, GenerateRequest, ScoreRequest
from lingu_ray.evaluation.tasks import Choice, Passage, Question, Task


@dataclass(frozen=True)
class Metric:
    """How a task type's level, `Σ score / Σ weight`, reads."""

    name: str
    higher_is_better: bool


METRICS = {
    "multiple_choice": Metric("acc", True),
    "perplexity": Metric("perplexity", False),
    "exact_match": Metric("exact_match", True),
}

Columns = dict[str, list[Any]]  # one list entry an item; always `item` (its line), `score` and `weight`


def score_items(task: Task, engine: Engine, label: str) -> Columns:
    """Measure every item of the task; the columns are those of its parquet file."""
    scorer = {"multiple_choice": _choices, "perplexity": _passages, "exact_match": _questions}[task.config.type]
    return {"item": [item.line for item in task.items], **scorer(task, engine, label)}


def _choices(task: Task, engine: Engine, label: str) -> Columns:
    """Accuracy: the likeliest option is the right one. `score_norm`: likeliest per byte of the option."""
    items = [item for item in task.items if isinstance(item, Choice)]
    scores = iter(engine.loglikelihoods([ScoreRequest(*pair) for item in items for pair in item.pairs], label))
    logliks = [[next(scores).loglik for _ in item.pairs] for item in items]
    chosen = [int(np.argmax(option_logliks)) for option_logliks in logliks]
    chosen_norm = [int(np.argmax(np.divide(ls, item.option_bytes))) for ls, item in zip(logliks, items, strict=True)]
    return {
        "score": [float(c == item.gold) for c, item in zip(chosen, items, strict=True)],
        "weight": [1.0] * len(items),
        "score_norm": [float(c == item.gold) for c, item in zip(chosen_norm, items, strict=True)],
        "prediction": chosen,
        "gold": [item.gold for item in items],
        "logliks": logliks,
    }


def _passages(task: Task, engine: Engine, label: str) -> Columns:
    """Log-perplexity: `score` is a text's negative log-likelihood in nats, `weight` its tokens."""
    items = [item for item in task.items if isinstance(item, Passage)]
    scores = engine.loglikelihoods([ScoreRequest(item.context, item.text) for item in items], label)
    return {"score": [-s.loglik for s in scores], "weight": [float(s.tokens) for s in scores]}


def _questions(task: Task, engine: Engine, label: str) -> Columns:
    """Exact match of the normalised answer with one of those accepted."""
    items = [item for item in task.items if isinstance(item, Question)]
    requests = [GenerateRequest(item.question, item.images) for item in items]
    answers = engine.generate(requests, task.config.max_new_tokens, label)
    return {
        "score": [
            float(normalise(answer) in {normalise(right) for right in item.answers})
            for answer, item in zip(answers, items, strict=True)
        ],
        "weight": [1.0] * len(items),
        "prediction": answers,
        "answers": [list(item.answers) for item in items],
    }


def normalise(answer: str) -> str:
    """Lower case; no articles (unless that is all there is); no punctuation but what belongs to a number."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.lower())  # 1,000 is 1000
    text = re.sub(r"(?!-\d)(?!(?<=\d)[.:/]\d)[^\w\s]", " ", text)  # -5, 2.5, 10:30 and 1/2 stay
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)
