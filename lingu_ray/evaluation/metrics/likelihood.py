"""Judging by likelihood: multiple choice, the last word, perplexity."""

from __future__ import annotations

import numpy as np

from lingu_ray.evaluation.metrics.metric import Columns, Scores

ACC_NORM = "acc_norm"
"""Accuracy by likelihood per character."""


def judge_likelihoods(columns: Columns) -> Scores:
    """Accuracy of multiple choice: the most likely option is `gold`. `acc_norm`: the most likely per character.

    `nats_per_choice`: the negative log-likelihood of the right option, of all its tokens together.
    """
    gold = columns["gold"]
    score, per_character = (
        [float(option == right) for option, right in zip(chosen(columns, metric), gold, strict=True)]
        for metric in ("acc", ACC_NORM)
    )
    nats = [-logliks[right] for logliks, right in zip(columns["logliks"], gold, strict=True)]
    return Scores(score, [1.0] * len(score), {ACC_NORM: per_character, "nats_per_choice": nats})


def chosen(columns: Columns, metric: str) -> list[int]:
    """The option that each item's likelihoods choose, by the metric that judges them: `acc` or `acc_norm`."""
    if metric != ACC_NORM:
        return [int(np.argmax(logliks)) for logliks in columns["logliks"]]
    items = zip(columns["logliks"], columns["lengths"], strict=True)
    return [int(np.argmax(np.divide(logliks, lengths))) for logliks, lengths in items]


def judge_last_word(columns: Columns) -> Scores:
    """Accuracy: greedy decoding gives the word. `nats_per_word`: the log-perplexity of the words."""
    score = [float(greedy) for (greedy,) in columns["greedy"]]
    return Scores(score, [1.0] * len(score), {"nats_per_word": [-loglik for (loglik,) in columns["logliks"]]})


def judge_perplexity(columns: Columns) -> Scores:
    """Log-perplexity: negative log-likelihood in nats over tokens.

    `nats_per_word`, `nats_per_byte`: the same over `words` and `bytes`, where the task has these fields; an entry is
    nats × all tokens / all words, so that the sum of entries over the sum of weights is the level.
    """
    nats = [-loglik for (loglik,) in columns["logliks"]]
    tokens = [float(count) for (count,) in columns["tokens"]]
    extra: dict[str, list[float]] = {}
    for unit in ("word", "byte"):
        if counts := columns.get(f"{unit}s"):
            extra[f"nats_per_{unit}"] = [n * sum(tokens) / sum(counts) for n in nats]
    return Scores(nats, tokens, extra)
