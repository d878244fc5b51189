"""Distill a vision-language model in a plain PyTorch loop.

    python examples/own_loop.py STUDENT TEACHER DATA OUT

STUDENT and TEACHER are folders or hub ids. DATA is a JSON Lines file of {"question": …, "answer": …, "distill": true},
with "image", a path, where there is one; `distill` marks the rows with a KD term. OUT is a folder for the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from lingu_ray.corpus.images import decode_image
from lingu_ray.distill import Distiller, TokenCounts
from lingu_ray.processors import read_processor

FIELDS = {"question": str, "answer": str, "distill": bool}
ROWS_AT_ONCE, ACCUMULATE, LEARNING_RATE = 2, 4, 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def collate(processor: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows as a batch with labels on the answers alone; `distill` marks the rows to distill.

    Questions are padded on the left and answers on the right, so that each answer follows its question.
    """
    questions, answers = (list(texts) for texts in zip(*(render(processor, row) for row in rows), strict=True))
    images = [[decode_image(Path(row["image"]).read_bytes())] if row.get("image") else [] for row in rows]
    bos = not questions[0].startswith(processor.tokenizer.bos_token or "")  # where the template does not write it
    options = {"padding": True, "return_tensors": "pt"}
    batch = processor(
        text=questions, images=images if any(images) else None, padding_side="left", add_special_tokens=bos, **options
    )
    said = processor.tokenizer(answers, padding_side="right", add_special_tokens=False, **options)
    answer_ids = said["input_ids"].masked_fill(said["attention_mask"] == 0, -100)
    labels = torch.cat([torch.full_like(batch["input_ids"], -100), answer_ids], 1)
    joined = {name: torch.cat([batch[name], said[name]], 1) for name in ("input_ids", "attention_mask")}
    vision = {name: value for name, value in batch.items() if "token_type" not in name}
    distill = torch.tensor([row["distill"] for row in rows])
    return vision | joined | {"labels": labels, "distill": distill}


def render(processor: Any, row: dict[str, Any]) -> tuple[str, str]:
    """A row as the chat template writes it: the question with the generation prompt, and the answer that follows.

    The answer ends with the template's end of turn, or with EOS where it writes none.
    """
    content = [{"type": "image"}] * bool(row.get("image")) + [{"type": "text", "text": row["question"]}]
    asked = {"role": "user", "content": content}
    said = {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
    question = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template([asked, said], tokenize=False)
    if not whole.startswith(question):
        raise ValueError(f"the chat template asks with {question!r}, and a conversation is {whole!r}")
    answer = whole.removeprefix(question).rstrip()
    ends = tuple(str(token) for token in processor.tokenizer.added_tokens_decoder.values())
    return question, answer if answer.endswith(ends) else answer + processor.tokenizer.eos_token


def read_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; a field that is missing or null is an error, or a template would write `None`."""
    with Path(path).open(encoding="utf-8-sig") as lines:  # Windows begins a file with a mark
        rows = {number: json.loads(line) for number, line in enumerate(lines, 1) if line.strip()}
    for number, row in rows.items():
        if wrong := [name for name, kind in FIELDS.items() if not isinstance(row.get(name), kind)]:
            raise ValueError(f"{path}, line {number}: {', '.join(wrong)}: texts are needed, and a bool distill")
    return list(rows.values())


def main(student_path: str, teacher_path: str, data: str, out: str) -> None:
    """Train on every row once and write the model."""
    student = AutoModelForImageTextToText.from_pretrained(student_path, dtype=torch.float32).to(DEVICE).train()
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float32).to(DEVICE)
    processor = read_processor(student_path)
    distiller = Distiller(student, teacher, divergence="forward_kl", temperature=1.0, w_ce=1.0, w_kd=1.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    rows = read_rows(data)
    rows_of_step = ROWS_AT_ONCE * ACCUMULATE
    for start in range(0, len(rows), rows_of_step):
        chosen = rows[start : start + rows_of_step]
        batches = [collate(processor, chosen[i : i + ROWS_AT_ONCE]) for i in range(0, len(chosen), ROWS_AT_ONCE)]
        step = [(batch, batch.pop("distill")) for batch in batches]
        total = sum((distiller.count(batch, distill) for batch, distill in step), TokenCounts(0, 0))
        ce = kd = 0.0
        for batch, distill in step:
            output = distiller(batch, distill, tokens=total.ce)
            output.loss.backward()
            ce, kd = ce + output.ce.item(), kd + output.kd.item()
        optimizer.step()
        optimizer.zero_grad()
        said = f"CE {ce:.4f}, KD {kd:.4f} over {total.ce} tokens, {total.kd} distilled"
        print(f"step {start // rows_of_step + 1}: {said}")
    student.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
