"""How answers to language tasks are judged."""

from __future__ import annotations

import re

import numpy as np

from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores


def judge_likelihoods(columns: Columns) -> Scores:
    """Accuracy of multiple choice: the likeliest option is `gold`. `acc_norm`: the likeliest per character."""
    items = list(zip(columns["logliks"], columns["lengths"], columns["gold"], strict=True))
    score = [float(np.argmax(logliks) == gold) for logliks, _, gold in items]
    per_character = [float(np.argmax(np.divide(logliks, lengths)) == gold) for logliks, lengths, gold in items]
    return Scores(score, [1.0] * len(score), {"acc_norm": per_character})


def judge_last_word(columns: Columns) -> Scores:
    """Accuracy: greedy decoding would say the word. `nats_per_word`: the log-perplexity of the words."""
    score = [float(greedy) for (greedy,) in columns["greedy"]]
    return Scores(score, [1.0] * len(score), {"nats_per_word": [-loglik for (loglik,) in columns["logliks"]]})


def judge_perplexity(columns: Columns) -> Scores:
    """Log-perplexity: negative log-likelihood in nats over tokens.

    `nats_per_word`, `nats_per_byte`: the same over `words` and `bytes`, where the task has such fields; an entry is
    nats × all tokens / all words, so that the entries' sum over that of the weights is the level.
    """
    nats = [-loglik for (loglik,) in columns["logliks"]]
    tokens = [float(count) for (count,) in columns["tokens"]]
    extra: dict[str, list[float]] = {}
    for unit in ("word", "byte"):
        if counts := columns.get(f"{unit}s"):
            extra[f"nats_per_{unit}"] = [n * sum(tokens) / sum(counts) for n in nats]
    return Scores(nats, tokens, extra)


def judge_exact_match(columns: Columns) -> Scores:
    """The normalized answer is one of those accepted."""
    score = [
        float(normalize(prediction) in {normalize(right) for right in answers})
        for prediction, answers in zip(columns["prediction"], columns["answers"], strict=True)
    ]
    return Scores(score, [1.0] * len(score), {})


def normalize(answer: str) -> str:
    """Lower case; no articles (unless that is all there is); no punctuation but what belongs to a number."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.lower())  # 1,000 is 1000
    text = re.sub(r"(?!-\d)(?!(?<=\d)[.:/]\d)[^\w\s]", " ", text)  # -5, 2.5, 10:30 and 1/2 stay
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


LANGUAGE_METRICS: dict[str, Metric] = {
    "multiple_choice": Metric("acc", True, True, judge_likelihoods),
    "last_word": Metric("acc", True, True, judge_last_word),
    "perplexity": Metric("perplexity", False, False, judge_perplexity),
    "exact_match": Metric("exact_match", True, True, judge_exact_match),
}
