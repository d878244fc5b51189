"""Judging by likelihood: multiple choice, the last word, perplexity."""

from __future__ import annotations

import numpy as np

from lingu_ray.evaluation.metrics.metric import Columns, Scores


def judge_likelihoods(columns: Columns) -> Scores:
    """Accuracy of multiple choice: the most likely option is `gold`. `acc_norm`: the most likely per character.

    `nats_per_choice`: the negative log-likelihood of the right option, of all its tokens together.
    """
    items = list(zip(columns["logliks"], columns["lengths"], columns["gold"], strict=True))
    score = [float(np.argmax(logliks) == gold) for logliks, _, gold in items]
    per_character = [float(np.argmax(np.divide(logliks, lengths)) == gold) for logliks, lengths, gold in items]
    nats = [-logliks[gold] for logliks, _, gold in items]
    return Scores(score, [1.0] * len(score), {"acc_norm": per_character, "nats_per_choice": nats})


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
