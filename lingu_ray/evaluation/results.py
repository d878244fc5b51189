"""What an evaluation measured, as types; `recovery.json` is written from them and read back into them here alone.

An estimate that has no value is None, in the types and in the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lingu_ray.evaluation.roles import ADAPTED, CE_ONLY, DISTILLED, TEACHER, in_order

FILE = "recovery.json"
PERPLEXITY = "perplexity"
"""The metric whose level is the logarithm of its score, in nats per token."""

Kind = Literal["language", "vision"]
Share = Literal["recovery", "retention"]
SHARES: dict[Kind, Share] = {"language": "recovery", "vision": "retention"}
"""What is measured on a kind of task: the share of the lost language that came back, the share of vision kept."""


class Interval(NamedTuple):
    """Central 95% of the bootstrap's resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    ci: Interval

    def percent(self, digits: int = 0) -> str:
        """`97% [94, 101]`."""
        low, high = (f"{100 * x:.{digits}f}" for x in self.ci)
        return f"{self.value:.{digits}%} [{low}, {high}]"


@dataclass(frozen=True)
class ModelScore:
    """A model on a task: its score, further levels by name, and its own recovery or retention."""

    score: Estimate
    extra: dict[str, float]
    share: Estimate | None


@dataclass(frozen=True)
class TaskScores:
    """The models on a task.

    `is_share`: scores are shares of what can be reached, shown in per cent. `floor`: recovery or retention from which
    the task counts as kept; None in files that have none. `reason`: why the distilled model's has no value.
    `over_adapted`, `over_ce_only`: how much better the distilled model scores than that one, in the units of the metric
    (perplexity: nats per token); None where one is not measured, or not on the same tokens.
    """

    kind: Kind
    metric: str
    higher_is_better: bool
    is_share: bool
    items: int
    models: dict[str, ModelScore]
    distilled: Estimate | None
    reason: str | None
    ce_only: Estimate | None
    floor: float | None = None
    over_adapted: Estimate | None = None
    over_ce_only: Estimate | None = None

    @property
    def share_name(self) -> Share:
        """`recovery` for a language task, `retention` for a vision task."""
        return SHARES[self.kind]

    @property
    def unit(self) -> str:
        """What differences of the score are in."""
        return "nats per token" if self.metric == PERPLEXITY else self.metric

    @property
    def digits(self) -> int:
        """Decimals of a recovery or retention in per cent."""
        return 0 if self.kind == "language" else 1


@dataclass(frozen=True)
class Means:
    """A model's recovery and retention, each the mean over the tasks that give one."""

    recovery: Estimate | None
    retention: Estimate | None

    def items(self) -> Iterator[tuple[Share, Estimate | None]]:
        """Both, by name."""
        yield "recovery", self.recovery
        yield "retention", self.retention


@dataclass(frozen=True)
class Control:
    """The CE-only model's means. `difference`: recovery of the distilled model minus its own, mean over tasks.

    `beaten`: whether the whole interval of the difference is above 0; None without a difference.
    """

    means: Means
    difference: Estimate | None
    beaten: bool | None


@dataclass(frozen=True)
class Verdict:
    """Whether the claim holds (None: cannot be judged), and the sentence that says so wherever results are shown.

    `exceptions`: the tasks that speak against it, a clause each; the sentence has them too.
    """

    holds: bool | None
    text: str
    exceptions: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The sentence up to its colon."""
        return self.text.partition(": ")[0]

    @property
    def detail(self) -> str:
        """The sentence after its colon; empty where it has none."""
        return self.text.partition(": ")[2]

    @property
    def tone(self) -> str:
        """How a page colors it: `good`, `mixed` (holds, with exceptions), `bad`, or `open`."""
        if self.holds is None:
            return "open"
        return "bad" if not self.holds else "mixed" if self.exceptions else "good"


@dataclass(frozen=True)
class Recovery:
    """The content of `recovery.json`: the tasks by name, the means of the models, and the verdict.

    `distilled`: the means that the verdict is about. `models`: those of all measured models but teacher and adapted.
    """

    tasks: dict[str, TaskScores]
    distilled: Means
    control: Control | None
    models: dict[str, Means]
    verdict: Verdict

    @property
    def measured(self) -> list[str]:
        """Names of the models: the four of the method in their order, then others."""
        return in_order(model for task in self.tasks.values() for model in task.models)

    @property
    def trained_model(self) -> str:
        """The name that a run's own model has in its evaluation."""
        return DISTILLED if any(DISTILLED in task.models for task in self.tasks.values()) else CE_ONLY

    def reasons(self) -> dict[Share, str]:
        """Why mean recovery or retention of the distilled model has no value, where it has none."""
        return {name: self._reason(name) for name, mean in self.distilled.items() if mean is None}

    def _reason(self, name: Share) -> str:
        of_tasks = [(task_name, task.reason) for task_name, task in self.tasks.items() if task.share_name == name]
        return "; ".join(f"{task}: {reason}" for task, reason in of_tasks if reason) or "no task measures it"


def write_recovery(result: Recovery, folder: Path) -> None:
    """Write `recovery.json` to `folder`."""
    text = json.dumps(as_json(result), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_recovery(folder: Path) -> Recovery | None:
    """The content of the folder's `recovery.json`; None where there is none."""
    path = folder / FILE
    return from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def as_json(result: Recovery) -> dict[str, Any]:
    """The result as JSON has it."""
    summary: dict[str, Any] = {**_means_json(result.distilled), "ce_only": None}
    if control := result.control:
        difference = _pair("difference", control.difference)
        summary["ce_only"] = {**_means_json(control.means), **difference, "beaten": control.beaten}
    summary |= {
        "models": {model: _means_json(means) for model, means in result.models.items()},
        "claim_holds": result.verdict.holds,
        "verdict": result.verdict.text,
        "exceptions": list(result.verdict.exceptions),
    }
    return {"tasks": {name: _task_json(task) for name, task in result.tasks.items()}, "summary": summary}


def from_json(tree: Mapping[str, Any]) -> Recovery:
    """The result from its JSON, of earlier versions too, whose tasks have no floors and the verdict no exceptions."""
    summary = tree["summary"]
    control = None
    if entry := summary["ce_only"]:
        control = Control(_means(entry), _estimate("difference", entry), entry["beaten"])
    return Recovery(
        {name: _task(entry) for name, entry in tree["tasks"].items()},
        _means(summary),
        control,
        {model: _means(entry) for model, entry in summary["models"].items()},
        Verdict(summary["claim_holds"], summary["verdict"], tuple(summary.get("exceptions", ()))),
    )


def _task_json(task: TaskScores) -> dict[str, Any]:
    name = task.share_name
    return {
        "kind": task.kind,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "share": task.is_share,
        "n": task.items,
        "models": {model: _model_json(name, model, found) for model, found in task.models.items()},
        **_pair(name, task.distilled),
        f"{name}_reason": task.reason,
        "ce_only": _pair(name, task.ce_only),
        "floor": task.floor,
        **_pair("over_adapted", task.over_adapted),
        **_pair("over_ce_only", task.over_ce_only),
    }


def _task(entry: Mapping[str, Any]) -> TaskScores:
    name = SHARES[entry["kind"]]
    return TaskScores(
        kind=entry["kind"],
        metric=entry["metric"],
        higher_is_better=entry["higher_is_better"],
        is_share=entry["share"],
        items=entry["n"],
        models={model: _model(name, found) for model, found in entry["models"].items()},
        distilled=_estimate(name, entry),
        reason=entry[f"{name}_reason"],
        ce_only=_estimate(name, entry["ce_only"]),
        floor=entry.get("floor"),
        over_adapted=_estimate("over_adapted", entry),
        over_ce_only=_estimate("over_ce_only", entry),
    )


def _model_json(name: Share, model: str, found: ModelScore) -> dict[str, Any]:
    share = {} if model in (TEACHER, ADAPTED) else _pair(name, found.share)
    return {"score": found.score.value, "ci": list(found.score.ci), **found.extra, **share}


def _model(name: Share, entry: Mapping[str, Any]) -> ModelScore:
    known = ("score", "ci", name, f"{name}_ci")
    extra = {key: value for key, value in entry.items() if key not in known}
    return ModelScore(Estimate(entry["score"], Interval(*entry["ci"])), extra, _estimate(name, entry))


def _means_json(means: Means) -> dict[str, Any]:
    return {**_pair("recovery", means.recovery), **_pair("retention", means.retention)}


def _means(entry: Mapping[str, Any]) -> Means:
    return Means(_estimate("recovery", entry), _estimate("retention", entry))


def _pair(name: str, estimate: Estimate | None) -> dict[str, Any]:
    """An estimate under its name, its interval under `<name>_ci`."""
    if estimate is None:
        return {name: None, f"{name}_ci": None}
    return {name: estimate.value, f"{name}_ci": list(estimate.ci)}


def _estimate(name: str, entry: Mapping[str, Any]) -> Estimate | None:
    value = entry.get(name)
    return None if value is None else Estimate(value, Interval(*entry[f"{name}_ci"]))
