"""Paired bootstrap over items: all models are scored on the same resampled items.

Shape suffixes: I items, C clusters of items, K models, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 2_000_000  # items drawn at once, over all resamples


def level(score: Floats, weight: Floats) -> Floats:
    """`Σ score / Σ weight` over the items, which are the last dimension: [K, I] to [K], [R, I] to [R]."""
    return score.sum(axis=-1) / weight.sum(axis=-1)


def summed(values_KI: Floats, cluster_I: Sequence[Hashable]) -> Floats:
    """The sum over each cluster's items, [K, C]: resampled, they are drawn together, as they were sampled.

    Several questions about one image are such a cluster: drawn one by one they would count as more than they tell.
    """
    places: dict[Hashable, int] = {}
    place_I = [places.setdefault(cluster, len(places)) for cluster in cluster_I]
    return np.array([np.bincount(place_I, values_I) for values_I in values_KI], dtype=np.float64)


def resample(
    score_KI: Floats, weight_KI: Floats, resamples: int, seed: list[int], strata: Sequence[Hashable] | None = None
) -> Floats:
    """Levels of each model on `resamples` draws of the items with replacement, the same for all models: [R, K].

    With `strata` (an entry an item) each stratum keeps its number of items: the draw is made within it.
    """
    items = score_KI.shape[1]
    groups = _groups(strata or [None] * items)
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK // items)
    levels: list[Floats] = []
    for begin in range(0, resamples, rows):
        count = min(rows, resamples - begin)
        draw_RI = np.concatenate([group[random.integers(len(group), size=(count, len(group)))] for group in groups], 1)
        levels.append(
            np.stack([level(s_I[draw_RI], w_I[draw_RI]) for s_I, w_I in zip(score_KI, weight_KI, strict=True)], axis=1)
        )
    return np.concatenate(levels)


def _groups(strata: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The items' indices by stratum."""
    found: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        found.setdefault(stratum, []).append(index)
    return [np.array(group) for group in found.values()]


def interval(samples_R: Floats) -> list[float]:
    """Central 95% of the resampled values: [low, high]."""
    return [float(x) for x in np.percentile(samples_R, [2.5, 97.5])]
