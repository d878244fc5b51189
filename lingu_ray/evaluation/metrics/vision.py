"""How answers about images are judged, by task type."""

from __future__ import annotations

from collections.abc import Callable

from lingu_ray.evaluation.metrics.anls import anls
from lingu_ray.evaluation.metrics.captions import judge_cider, rouge_l
from lingu_ray.evaluation.metrics.letters import judge_letters
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.metrics.mme import judge_mme
from lingu_ray.evaluation.metrics.relaxed import relaxed_accuracy
from lingu_ray.evaluation.metrics.vqa import vqa_accuracy


def _mean_of(score: Callable[[str, list[str]], float]) -> Callable[[Columns], Scores]:
    """Judge by the mean of a score of prediction and answers."""

    def judge(columns: Columns) -> Scores:
        scores = [score(p, answers) for p, answers in zip(columns["prediction"], columns["answers"], strict=True)]
        return Scores(scores, [1.0] * len(scores), {})

    return judge


VISION_METRICS: dict[str, Metric] = {
    "multiple_choice": Metric("acc", True, True, judge_letters),
    "vqa_accuracy": Metric("vqa_accuracy", True, True, _mean_of(vqa_accuracy)),
    "anls": Metric("anls", True, True, _mean_of(anls)),
    "relaxed_accuracy": Metric("relaxed_accuracy", True, True, _mean_of(relaxed_accuracy)),
    "cider": Metric("cider", True, False, judge_cider),
    "rouge_l": Metric("rouge_l", True, True, _mean_of(rouge_l)),
    "mme": Metric("mme", True, False, judge_mme),
}
