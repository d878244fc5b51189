"""What an answer has around what is judged: the reasoning that some models write first, and marks of the answer."""

from __future__ import annotations

import re

from lingu_ray.evaluation.metrics.metric import Columns

MARKS = {
    "<think>": "</think>",  # Qwen, DeepSeek, GLM and most others
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",  # Mistral
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
    "<|channel>": "<channel|>",  # Gemma 4
    "<|channel|>analysis": "<|channel|>final<|message|>",  # gpt-oss
}
"""What closes reasoning, by what opens it."""

TOKENS = re.findall(
    r"<[^>]+>|\[[^\]]+\]|◁[^▷]+▷", " ".join(f"{opening} {closing}" for opening, closing in MARKS.items())
)
"""Tokens that these marks are made of, in vocabularies that have them."""

# Of R1's prompt and those made after it, and of GLM-4V; the second one is missing where the answer is cut off.
_ANSWER = re.compile(r"(?:<answer>|<\|begin_of_box\|>)(.*?)(?:</answer>|<\|end_of_box\|>|$)", re.DOTALL)


def reasoning_length(text: str) -> int:
    """Length of the reasoning that a text begins with, and of the space behind it; of all, where it does not end."""
    if ends := [text.rindex(closing) + len(closing) for closing in MARKS.values() if closing in text]:
        return len(text) - len(text[max(ends) :].lstrip())
    return len(text) if text.lstrip().startswith(tuple(MARKS)) else 0


def final_answer(text: str) -> str:
    """What is judged of a generated text: what follows its reasoning, of that what is marked as the answer."""
    said = text[reasoning_length(text) :]
    marked = _ANSWER.findall(said)
    return marked[-1].strip() if marked else said


def final_answers(columns: Columns) -> Columns:
    """The items with what is judged of their answers; one that ends within its reasoning is empty."""
    if "prediction" not in columns:
        return columns
    return columns | {"prediction": [final_answer(text) for text in columns["prediction"]]}
