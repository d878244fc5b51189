"""What a model reasons before its answer is neither judged nor cut by the texts that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_kinds import TEMPLATES
from tiny import tiny_teacher, tiny_tokenizer
from tokenizers import AddedToken

from lingu_ray.config import TaskConfig
from lingu_ray.evaluation.engines.engine import GenerateRequest
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.evaluation.engines.prompts import Prompts
from lingu_ray.evaluation.metrics.reasoning import MARKS, TOKENS, final_answer
from lingu_ray.evaluation.tasks.judging import judge_task

SAID = {  # of an answer `red`, with the empty block that Qwen3's template writes and a student learns; and its score
    "red": 1,
    "<think>\n\n</think>\n\nred": 1,
    "<think>\nIt looks blue. (B)\n</think>\n\nred": 1,
    "It looks blue. </think> red": 1,
    "<think>\nIt is red, so the answer is (A)": 0,  # cut off before there is an answer
    "[THINK]It looks blue. (B)[/THINK]red": 1,
    "◁think▷It looks blue. (B)◁/think▷red": 1,
    "<|channel>thought\n<channel|>red": 1,
    "<|channel|>analysis<|message|>It looks blue. (B)<|channel|>final<|message|>red": 1,
    "<|channel|>analysis<|message|>It is red, so the answer is (A)": 0,
    "<think>\nblue?\n</think>\n<answer> red </answer>": 1,
    "<answer>red": 1,  # cut off behind it
    "It is <|begin_of_box|>red<|end_of_box|>": 1,
}
REFERENCES: dict[str, dict[str, Any]] = {
    "exact_match": {"answers": ["red"]},
    "anls": {"answers": ["red"]},
    "relaxed_accuracy": {"answers": ["red"]},
    "vqa_accuracy": {"answers": ["red"] * 10},
    "multiple_choice": {"choices": ["red", "blue"], "gold": 0},
}


@pytest.mark.parametrize("type", REFERENCES)
def test_reasoning_is_not_judged(type: str) -> None:
    """An answer has the same score with and without reasoning before it; reasoning alone has none."""
    columns = {key: [value] * len(SAID) for key, value in REFERENCES[type].items()}
    task = TaskConfig.model_validate({"name": "t", "kind": "vision", "type": type, "path": "-"})
    _, scores = judge_task(task, {"m": {"item": list(SAID), "prediction": list(SAID), **columns}})
    assert scores["m"].score == list(SAID.values())


def prompts_of(folder: Path, template: str, tokens: list[str]) -> Prompts:
    """Prompts of a language model with that template, whose tokenizer has these tokens of its own."""
    tiny_teacher(folder=folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return Prompts(load_model_files(folder))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("opening", "closing"), MARKS.items())
def test_marks_of_reasoning_are_kept(opening: str, closing: str, special: bool, tmp_path: Path) -> None:
    """Marks that are special tokens are not dropped from the text, as others are, so that reasoning is told apart."""
    prompts = prompts_of(tmp_path, TEMPLATES["chatml"], [])
    prompts.tokenizer.add_tokens([AddedToken(token, special=special) for token in (*TOKENS, "<|other|>")])
    ids = prompts.tokenizer(f"{opening}blue{closing}red", add_special_tokens=False).input_ids
    said = prompts.answer(GenerateRequest("Which?", stop=("blue",)), ids).text
    assert final_answer(said) == "red" and said.startswith(opening)
    other = prompts.tokenizer("<|other|>red", add_special_tokens=False).input_ids
    assert prompts.answer(GenerateRequest("Which?"), other).text == ("red" if special else "<|other|>red")


def test_stop_texts_end_an_answer_and_not_its_reasoning(tmp_path: Path) -> None:
    """A line's end ends the answer behind the block; raw text, and a model that cannot reason, stop at the first."""
    request = GenerateRequest("Which color?", stop=("\n",))
    raw = GenerateRequest("Which color?", stop=("\n",), chat=False)
    said = "<think>\nblue?\n</think>\n\nred\nIt is red."
    prompts = prompts_of(tmp_path / "reasons", TEMPLATES["qwen3"], ["<think>", "</think>"])
    ids = prompts.tokenizer(said, add_special_tokens=False).input_ids
    assert prompts.answer(request, ids).text == "<think>\nblue?\n</think>\n\nred"
    assert prompts.answer(raw, ids).text == "<think>"
    assert (prompts.stops(request), prompts.stops(raw)) == ([], ["\n"])
    other = prompts_of(tmp_path / "other", TEMPLATES["chatml"], [])
    assert other.stops(request) == ["\n"]
    assert other.answer(request, other.tokenizer("red\nIt is.", add_special_tokens=False).input_ids).text == "red"


def test_reasoning_that_the_prompt_begins_is_reasoning(tmp_path: Path) -> None:
    """Where the generation prompt ends with `<think>`, what is cut off before its end is no answer."""
    template = TEMPLATES["chatml"].replace("assistant\n{%", "assistant\n<think>\n{%")
    prompts = prompts_of(tmp_path, template, ["<think>", "</think>"])
    ids = prompts.tokenizer("It is (A)", add_special_tokens=False).input_ids
    assert prompts.answer(GenerateRequest("Which?"), ids).text == "<think>It is (A)"
