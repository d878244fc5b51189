"""A few pictures and texts in the form of the public sets that `benchmarks.result.data` prepares."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

WORDS = ("river", "stone", "garden", "music", "winter", "letter", "bridge", "doctor", "market", "silver", "window")


def write_sets(data: Path) -> None:
    """Write all sets: 30 pictures each of shapes, clothing and groceries, 40 puzzles, 120 prompts, 40 items a task."""
    random = Random(0)
    _write_easy_vqa(data / "easy_vqa", random)
    _write_clothing(data / "images/clothing", random)
    _write_grocery(data / "images/grocery_store", random)
    _write_puzzles(data / "images/puzzlevqa", random)
    _write_texts(data, random)


def picture(path: Path, random: Random) -> None:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(random.getrandbits(32)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((32, 32), Image.Resampling.NEAREST).save(path)


def sentence(random: Random, words: int) -> str:
    """So many words at random."""
    return " ".join(random.choice(WORDS) for _ in range(words))


def write_lines(path: Path, records: list[dict]) -> None:
    """Write a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _write_easy_vqa(folder: Path, random: Random) -> None:
    for part, count in (("train", 24), ("test", 6)):
        for image in range(count):
            picture(folder / part / f"images/{image}.png", random)
        questions = [["what shape is it?", "circle", n] for n in range(count)]
        (folder / part / "questions.json").write_text(json.dumps(questions))


def _write_clothing(folder: Path, random: Random) -> None:
    for part, count in (("train", 24), ("validation", 6)):
        records = [{"image": f"{part}/{n}.png", "label": ("hat", "dress")[n % 2]} for n in range(count)]
        for record in records:
            picture(folder / record["image"], random)
        write_lines(folder / f"{part}.jsonl", records)


def _write_grocery(folder: Path, random: Random) -> None:
    folder.mkdir(parents=True)
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"
    described = "described/Pink-Lady.txt"
    (folder / "classes.csv").write_text(
        f"{header},Product Description Path (str)\nPink-Lady,0,Apple,0,none.jpg,/{described}\n"
    )
    (folder / "described").mkdir()
    (folder / described).write_text("An apple. It is sweet.\n")
    for part, count in (("train", 24), ("val", 6)):
        names = [f"{part}/Fruit/Apple/{n}.png" for n in range(count)]
        for name in names:
            picture(folder / name, random)
        (folder / f"{part}.txt").write_text("".join(f"{name}, 0, 0\n" for name in names))


def _write_puzzles(folder: Path, random: Random) -> None:
    records = [
        {
            "image": f"images/{n}.png",
            "question": "Which number is missing?",
            "options": [1, 2],
            "answer": 1,
            **{key: f"{key} {n}." for key in ("caption", "explanation", "deduction")},
        }
        for n in range(40)
    ]
    for record in records:
        picture(folder / record["image"], random)
    write_lines(folder / "triangle.json", records)


def _write_texts(data: Path, random: Random) -> None:
    pairs = [{"task": "quarel", "prompt": sentence(random, 20), "completion": "stone"} for _ in range(60)]
    texts = [{"task": "imdb", "prompt": sentence(random, 90), "completion": "good"} for _ in range(60)]
    write_lines(data / "text/t0_19k.jsonl", pairs + texts)
    for task in ("arc_easy", "piqa"):
        items = [{"query": f"Question: {sentence(random, 9)}", "choices": ["a", "b"], "gold": 0} for _ in range(40)]
        write_lines(data / f"eval/{task}.jsonl", items)
    boolq = [f"Passage: {sentence(random, 80)}\nQuestion: {sentence(random, 6)}?" for _ in range(40)]
    write_lines(data / "eval/boolq.jsonl", [{"query": q, "choices": ["no", "yes"], "gold": 0} for q in boolq])
    options = [[f"{sentence(random, 9)} {name}" for name in ("Ann", "Bob")] for _ in range(40)]
    winogrande = [{"context_options": two, "continuation": "left.", "gold": 1} for two in options]
    write_lines(data / "eval/winogrande.jsonl", winogrande)
    lambada = [{"context": sentence(random, 30), "continuation": "river"} for _ in range(40)]
    write_lines(data / "eval/lambada_openai.jsonl", lambada)
