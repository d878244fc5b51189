"""Vision tasks asked without their images: what is asked, what images add, and that no mean is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import write_measured
from tiny import picture, tiny_student, tiny_teacher, tiny_tokenizer

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Bounds
from lingu_ray.evaluation.engines.engine import GenerateRequest
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.item_files import items_path, read_items, write_items
from lingu_ray.evaluation.levels import seed_of
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.tasks.blind import blind_name
from lingu_ray.evaluation.tasks.load import load_tasks
from lingu_ray.evaluation.tasks.task import Asked
from lingu_ray.evaluation.tracking import figures_of
from lingu_ray.report.evaluation_page import write_evaluation

ITEMS, RESAMPLES = 80, 50
DIGITS = TaskConfig(name="digits", kind="vision", type="exact_match", path="-")


def task_of(folder: Path, *questions: str) -> EvaluationConfig:
    """A blind evaluation of a task of these questions, each about one image."""
    (folder / "0.png").write_bytes(picture(0))
    path = folder / "seen.jsonl"
    records = ({"question": question, "answer": "yes", "image": "0.png"} for question in questions)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"name": "seen", "kind": "vision", "type": "exact_match", "path": str(path), "max_new_tokens": 6}
    return EvaluationConfig.model_validate({"tasks": [task], "blind": True})


def test_a_blind_question_is_plain_text(tmp_path: Path) -> None:
    """Same items and references, no image, no mark for one: a VLM gets the tokens of a text, and answers them."""
    seen, blind = load_tasks(task_of(tmp_path, "<image>\nWhich digit?", "Is it a seven?"))
    assert blind.config.name == blind_name("seen")
    assert [(item.name, item.reference) for item in blind.items] == [(i.name, i.reference) for i in seen.items]
    requests = [item.request(blind.config) for item in blind.items if isinstance(item, Asked)]
    assert requests == [GenerateRequest(text, (), 6) for text in ("Which digit?", "Is it a seven?")]
    tiny_student(tiny_teacher(), folder=tmp_path / "vlm")
    engine = TransformersEngine(tmp_path / "vlm", 500)
    for request in requests:
        sample = engine.prompts.encode(request)
        asked = [{"role": "user", "content": [{"type": "text", "text": request.prompt}]}]
        ids = tiny_tokenizer().apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert not sample.vision and torch.equal(sample.input_ids_T, torch.tensor(ids))
    assert len(engine.generate(requests)) == 2


def test_a_question_that_is_only_its_image_is_refused(tmp_path: Path) -> None:
    """By task and item, before a model is loaded."""
    with pytest.raises(UserError, match="seen: item 2 asks nothing without its image"):
        load_tasks(task_of(tmp_path, "Which?", " <image> "))


def summarized(folder: Path, blind: bool) -> Recovery:
    """The result of three models on one task of images and one of language."""
    cloze = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    for model, right in {"teacher": 60, "adapted": 30, "distilled": 58}.items():
        write_measured(folder, cloze, model, [float(i < right) for i in range(ITEMS)])
    models = ["teacher", "adapted", "distilled"]
    return summarize(folder, models, EvaluationConfig(tasks=(DIGITS, cloze), bootstrap=RESAMPLES, blind=blind))


def test_what_images_add(tmp_path: Path) -> None:
    """Paired over items, as a slow reference has it; where it is nothing, page and verdict say so; means stay."""
    random = np.random.default_rng(3)
    blind = DIGITS.model_copy(update={"name": blind_name("digits")})
    kept: dict[str, tuple[list[float], list[float]]] = {}
    for model, share in {"adapted": 0.5, "distilled": 0.9}.items():
        kept[model] = [[float(x) for x in random.random(ITEMS) < chance] for chance in (share, 0.5)]
        for task, score in zip((DIGITS, blind), kept[model], strict=True):
            write_measured(tmp_path, task, model, score)
    plain, result = summarized(tmp_path, blind=False), summarized(tmp_path, blind=True)
    assert plain.distilled == result.distilled and plain.verdict.parts == result.verdict.parts
    found = result.tasks["digits"].blind
    assert found is not None and plain.tasks["digits"].blind is None
    drawn = {name: (read_items(tmp_path, "digits", "adapted") or {})[name] for name in ("item", "answers")}
    seed = seed_of(drawn)
    draws = np.random.default_rng(seed).integers(ITEMS, size=(RESAMPLES, ITEMS)).tolist()
    for model, (seeing, unseen) in kept.items():
        more_R, (with_R, without_R) = Bounds(1.0, (f" {model}", f"blind {model}")).drawn(RESAMPLES, seed)
        rest = zip(draws, more_R, with_R - without_R, strict=True)
        gains = [(math.fsum(seeing[i] - unseen[i] for i in d) + ahead) / (ITEMS + more) for d, more, ahead in rest]
        expected = [math.fsum(seeing) / ITEMS - math.fsum(unseen) / ITEMS, *np.percentile(gains, [2.5, 97.5])]
        gain = found.seeing[model]
        assert [gain.value, *gain.ci] == pytest.approx(expected, abs=1e-12)
        assert figures_of(result, model)["eval/digits/blind"] == pytest.approx(math.fsum(unseen) / ITEMS)
    assert found.adds_nothing("adapted") and not found.adds_nothing("distilled")
    assert "digits: images add nothing beyond noise to adapted, " in result.verdict.text
    page = write_evaluation(result, tmp_path).read_text()
    assert "exact_match, blind" in page and "to adapted VLM, nothing beyond noise" in page
    assert read_recovery(tmp_path) == result


def test_blind_scores_are_asked_for(tmp_path: Path) -> None:
    """Items that were measured without them, on other items, or before the right answers were changed."""
    write_measured(tmp_path, DIGITS, "adapted", [1.0] * ITEMS)
    with pytest.raises(UserError, match="no model was asked without images"):
        summarized(tmp_path, blind=True)
    for others in ({"item": [str(i) for i in range(5)]}, {"answers": [["another"]] * ITEMS}):
        blind = (read_items(tmp_path, "digits", "adapted") or {}) | others
        columns = {name: values[: len(blind["item"])] for name, values in blind.items()}
        write_items(items_path(tmp_path, blind_name("digits"), "adapted"), columns, None)
        with pytest.raises(UserError, match="different items"):
            summarized(tmp_path, blind=True)
