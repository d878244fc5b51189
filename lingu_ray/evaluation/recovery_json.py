"""`recovery.json`: written from the types of `results.py`, and read back into them, here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingu_ray.atomic import read_json, write_text
from lingu_ray.errors import UserError
from lingu_ray.evaluation.results import (
    QUOTIENTS,
    Blind,
    Constant,
    Estimate,
    Interval,
    Means,
    ModelScore,
    QuotientName,
    Recovery,
    TaskScores,
    Verdict,
)
from lingu_ray.evaluation.roles import References

FILE = "recovery.json"
_CURE = "remove it, and run the command that measured again, which finds the answers"


def write_recovery(result: Recovery, folder: Path) -> None:
    """Write `recovery.json` to `folder`."""
    text = json.dumps(as_json(result), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / FILE, text + "\n")


def read_recovery(folder: Path) -> Recovery | None:
    """The content of the folder's `recovery.json`; None where there is none."""
    return read_result(folder / FILE)


def read_result(path: Path) -> Recovery | None:
    """The content of a `recovery.json` under any name; None where there is none. Raises UserError for another file."""
    try:
        return from_json(read_json(path, "tasks", "summary", cure=_CURE)) if path.exists() else None
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has not the results that this version writes ({type(error).__name__}: {error}): {_CURE}"
        ) from error


def as_json(result: Recovery) -> dict[str, Any]:
    """The result as JSON has it."""
    references, verdict = result.references, result.verdict
    summary: dict[str, Any] = {
        **_means_json(result.distilled),
        "reasons": dict(result.reasons),
        "references": {"original": references.original, "baseline": references.baseline},
        "formulas": references.formulas,
        "models": {model: _means_json(means) for model, means in result.models.items()},
        "over": {model: _means_json(means) for model, means in result.over.items()},
        "claim_holds": verdict.holds,
        "parts": dict(verdict.parts),
        "verdict": verdict.text,
        "exceptions": list(verdict.exceptions),
        "recovery_in": result.recovery_in,
    }
    return {"tasks": {name: _task_json(task) for name, task in result.tasks.items()}, "summary": summary}


def from_json(tree: Mapping[str, Any]) -> Recovery:
    """The result from its JSON, of earlier versions too, which say less."""
    summary = tree["summary"]
    over = {model: _means(entry) for model, entry in summary.get("over", {}).items()}
    earlier = {model: Means(_estimate("difference", e), None) for model, e in summary.get("controls", {}).items()}
    exceptions, parts = tuple(summary.get("exceptions", ())), summary.get("parts", {})
    return Recovery(
        {name: _task(entry) for name, entry in tree["tasks"].items()},
        _means(summary),
        {model: _means(entry) for model, entry in summary["models"].items()},
        over or earlier,
        summary.get("reasons", {}),
        References(**summary["references"]) if "references" in summary else References(),
        Verdict(summary["claim_holds"], summary["verdict"], exceptions, parts),
        summary.get("recovery_in", "metric"),
    )


def _task_json(task: TaskScores) -> dict[str, Any]:
    name = task.quotient_name
    return {
        "kind": task.kind,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "share": task.is_share,
        "n": task.items,
        "clusters": task.clusters,
        "models": {model: _model_json(name, found) for model, found in task.models.items()},
        **_pair(name, task.distilled),
        f"{name}_reason": task.reason,
        "floor": task.floor,
        "in_mean": task.in_mean,
        **_pair("lost", task.lost),
        "over": {model: _pair("difference", difference) for model, difference in task.over.items()},
        "asked": task.asked,
        "engine": task.engine,
        "limit": task.limit,
        "nats": None if task.nats is None else _task_json(task.nats),
        "blind": None if task.blind is None else _blind_json(task.blind),
        "constant": None if task.constant is None else _constant_json(task.constant),
    }


def _task(entry: Mapping[str, Any]) -> TaskScores:
    name = QUOTIENTS[entry["kind"]]
    return TaskScores(
        kind=entry["kind"],
        metric=entry["metric"],
        higher_is_better=entry["higher_is_better"],
        is_share=entry["share"],
        items=entry["n"],
        clusters=entry.get("clusters", entry["n"]),
        models={model: _model(name, found) for model, found in entry["models"].items()},
        distilled=_estimate(name, entry),
        reason=entry[f"{name}_reason"],
        floor=entry.get("floor"),
        in_mean=entry.get("in_mean", True),
        lost=_estimate("lost", entry),
        over=_differences(entry.get("over", {})),
        asked=entry.get("asked"),
        engine=entry.get("engine"),
        limit=entry.get("limit"),
        nats=_task(entry["nats"]) if entry.get("nats") else None,
        blind=_blind(entry["blind"]) if entry.get("blind") else None,
        constant=_constant(entry["constant"]) if entry.get("constant") else None,
    )


def _blind_json(blind: Blind) -> dict[str, Any]:
    """By model: the score without images, `difference`, how much better the model is with them, and `cut_off`."""
    return {
        model: {"score": score.value, "ci": list(score.ci), **_pair("difference", blind.seeing[model])}
        | ({"cut_off": blind.cut_off[model]} if model in blind.cut_off else {})
        for model, score in blind.scores.items()
    }


def _blind(entry: Mapping[str, Any]) -> Blind:
    scores = {model: Estimate(found["score"], Interval(*found["ci"])) for model, found in entry.items()}
    cut_off = {model: found["cut_off"] for model, found in entry.items() if "cut_off" in found}
    return Blind(scores, _differences(entry), cut_off)


def _constant_json(constant: Constant) -> dict[str, Any]:
    """The answer, its score, and by model `difference`, how much better the model is."""
    score = {"answer": constant.answer, "score": constant.score.value, "ci": list(constant.score.ci)}
    return score | {"models": {model: _pair("difference", above) for model, above in constant.above.items()}}


def _constant(entry: Mapping[str, Any]) -> Constant:
    return Constant(entry["answer"], Estimate(entry["score"], Interval(*entry["ci"])), _differences(entry["models"]))


def _differences(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    """By model, those that have one."""
    return {model: found for model, entry in entries.items() if (found := _estimate("difference", entry)) is not None}


def _model_json(name: QuotientName, found: ModelScore) -> dict[str, Any]:
    cut_off = {} if found.cut_off is None else {"cut_off": found.cut_off}
    score = {"score": found.score.value, "ci": list(found.score.ci), **found.extra}
    return {**score, **cut_off, **_pair(name, found.quotient)}


def _model(name: QuotientName, entry: Mapping[str, Any]) -> ModelScore:
    known = ("score", "ci", "cut_off", name, f"{name}_ci")
    extra = {key: value for key, value in entry.items() if key not in known}
    score = Estimate(entry["score"], Interval(*entry["ci"]))
    return ModelScore(score, extra, _estimate(name, entry), entry.get("cut_off"))


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
