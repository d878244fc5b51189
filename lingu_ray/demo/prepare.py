"""Building the demo: a teacher, an adapted student that forgot its language, a corpus and evaluation items.

Everything is kept in `<output_dir>/.demo/<fingerprint>/` for the next time: `data/`, `teacher/`, and `adapted/`, a
training run of its own.
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from lingu_ray import content
from lingu_ray.atomic import whole_folder
from lingu_ray.config import Config, DemoConfig, StudentConfig
from lingu_ray.demo import chats, digits, items, text
from lingu_ray.demo.chats import Chat
from lingu_ray.demo.teacher import build_teacher, token_stream, train_teacher
from lingu_ray.errors import UserError

ADAPTED = "adapted"  # the run that makes the student
SHORT_QUESTIONS, LONG_QUESTIONS = 6000, 3000  # of the training digits
PASSAGE_CHATS, NEXT_WORDS = 2500, 3000  # that the teacher reads
TOLD = 20  # times that the teacher reads each sentence about a digit named in words

VISION = {
    "image_size": digits.IMAGE_SIDE,
    "patch_size": 8,
    "hidden_size": 96,
    "intermediate_size": 192,
    "layers": 2,
    "heads": 3,
    "pixel_shuffle": 2,
}
ADAPTING = {
    "rows_per_step": 24,
    "tokens_per_micro_batch": 2048,
    "learning_rates": {"vision": 2e-3, "projector": 2e-3, "decoder": 1e-3},
    "validate_every": 0,
    "sample_every": 0,
}


def prepare(config: Config) -> Config:
    """Build what the demo needs unless it exists; returns the configuration of the demo's main run. Needs Ray.

    Filled in are `student`, `teacher`, `corpus.sources` and `evaluation.tasks`, with absolute paths.

    Raises:
        UserError: this Python carries too little text.
    """
    assert config.demo is not None
    root = root_of(config)
    data = stage(root / "data", partial(write_data, settings=config.demo, seed=config.seed))
    teacher = stage(root / "teacher", partial(write_teacher, data=data, settings=config.demo, seed=config.seed))
    adapt(config, root, data, teacher)
    return filled(config)


def root_of(config: Config) -> Path:
    """The folder of the demo's models and data, built or not."""
    assert config.demo is not None and isinstance(config.output_dir, Path)
    return config.output_dir / ".demo" / fingerprint(config.demo, config.seed)


def filled(config: Config) -> Config:
    """The configuration of the main run, whether its models and data are built yet or not.

    Raises:
        UserError: models, sources or tasks are given that these would take the place of.
    """
    root = root_of(config)
    data = root / "data"
    full = Config.model_validate(
        config.model_dump()
        | {
            "student": {"path": str(root / ADAPTED / "export")},
            "teacher": config.teacher.model_dump() | {"path": str(root / "teacher")},
            "corpus": config.corpus.model_dump() | {"sources": distillation_sources(data)},
            "evaluation": config.evaluation.model_dump() | {"tasks": tasks(data)},
        }
    )
    _check_filled(config, full)
    return full


def _check_filled(given: Config, full: Config) -> None:
    left = StudentConfig(path="demo")  # as in the recipe
    known = {
        "student": (given.student, left, full.student),
        "teacher.path": (given.teacher.path, left.path, full.teacher.path),
        "corpus.sources": (given.corpus.sources, (), full.corpus.sources),
        "evaluation.tasks": (given.evaluation.tasks, (), full.evaluation.tasks),
    }
    if own := [setting for setting, (value, *taken) in known.items() if value not in taken]:
        raise UserError(
            f"{', '.join(own)}: the demo makes its own: leave it out, or set demo=null and give models and data"
        )


def fingerprint(settings: DemoConfig, seed: int) -> str:
    """A hash of what the demo is made from: settings, seed, Python (its text), scikit-learn (its digits), this code."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    parts = [settings.model_dump_json(), seed, platform.python_version(), version("scikit-learn"), *code]
    return content.fingerprint(parts, digits=16)


def stage(folder: Path, make: Callable[[Path], None]) -> Path:
    """The stage's folder, found again; or made under another name and renamed when whole."""
    if not folder.exists():
        with whole_folder(folder, keep_existing=True) as temporary:
            make(temporary)
    return folder


def write_data(folder: Path, settings: DemoConfig, seed: int) -> None:
    """Write tokenizer, text of the three splits, pictures, questions and evaluation items."""
    splits = text.split(text.read_documents())
    running, told = text.running_texts(splits["training"]), training_chats(splits["training"], seed)
    _write_lines(folder / "running.jsonl", ({"text": one} for one in running))
    _write_lines(folder / "chats.jsonl", (chat.training_record() for chat in told))
    read = running + [part for chat in told for part in (chat.question, chat.answer)]
    text.train_tokenizer(read, settings.vocabulary).save_pretrained(folder / "tokenizer")
    for name, make in (("passages", chats.passage_chats), ("next_words", chats.next_words)):
        _write_lines(folder / f"{name}.jsonl", (chat.training_record() for chat in make(splits["distillation"], seed)))
    unread = chats.next_words(splits["held_out"], seed, others_than=(splits["training"], splits["distillation"]))
    _write_lines(folder / "unread.jsonl", (chat.evaluation_item() for chat in unread[: settings.word_items]))
    _write_lines(folder / "cloze.jsonl", items.cloze_items(splits["held_out"], settings.cloze_items, seed))
    _write_lines(folder / "perplexity.jsonl", items.perplexity_texts(splits["held_out"], seed))

    trained, held_out = digits.write_images(folder / "images")
    for name, makers, count in (("short", digits.PRACTICE, SHORT_QUESTIONS), ("long", digits.LONG, LONG_QUESTIONS)):
        questions = digits.ask(makers, trained, count, seed)
        _write_lines(folder / f"{name}.jsonl", (question.training_record() for question in questions))
    for name, makers in (("digits", digits.SHORT), ("sentences", digits.LONG)):
        questions = digits.ask(makers, held_out, settings.vision_items, seed)
        _write_lines(folder / f"{name}.jsonl", (question.evaluation_item("images") for question in questions))


def training_chats(documents: text.Documents, seed: int) -> list[Chat]:
    """What the teacher reads of chats, shuffled: of the text, and of digits that are named in words."""
    read = chats.passage_chats(documents, seed)[:PASSAGE_CHATS] + chats.next_words(documents, seed)[:NEXT_WORDS]
    read += digits.told_in_words() * TOLD
    random.Random(seed).shuffle(read)
    return read


def write_teacher(folder: Path, data: Path, settings: DemoConfig, seed: int) -> None:
    """Train the teacher on the training split and save it with its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")
    texts = [record["text"] for record in _read_lines(data / "running.jsonl")]
    told = [Chat(record["prompt"], record["completion"]) for record in _read_lines(data / "chats.jsonl")]
    model = build_teacher(settings, tokenizer, seed)
    train_teacher(model, token_stream(tokenizer, texts, told), settings.teacher_steps, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def adapt(config: Config, root: Path, data: Path, teacher: Path) -> None:
    """Make a VLM of the teacher by CE alone on questions about digits: it learns to see and forgets language."""
    from lingu_ray.runtime.tracking.store_uri import same_store
    from lingu_ray.runtime.trainer import run

    assert config.demo is not None
    steps = config.demo.adapt_steps
    run(
        Config.model_validate(
            {
                "name": ADAPTED,
                "output_dir": root,
                "seed": config.seed,
                "student": {"from_teacher": VISION},
                "teacher": {"path": str(teacher)},
                "corpus": {"sources": adapting_sources(data), "max_length": 128, "validation_rows": 32},
                "distill": {"policy": "none"},
                "train": ADAPTING | {"steps": steps, "checkpoint_every": steps},
                "ray": config.ray.model_dump(),
                "tracking": config.tracking.model_dump()
                | {"uri": same_store(config), "run_name": "demo: adapted", "parent": None},
            }
        )
    )


def _source(data: Path, name: str, weight: float, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "format": "prompt_completion",
        "path": str(data / f"{name}.jsonl"),
        "image_root": str(data / "images"),
        "weight": weight,
    } | settings


def adapting_sources(data: Path) -> list[dict[str, Any]]:
    """What the student learns to see from: questions about pictures, and no text."""
    return [_source(data, "short", 0.75), _source(data, "long", 0.25)]


def distillation_sources(data: Path) -> list[dict[str, Any]]:
    """The mixture of the demo's main run: text and long answers are language-heavy, short answers are not."""
    return [
        _source(data, "passages", 0.4, language_heavy=True, ce_weight=3.0),
        _source(data, "next_words", 0.1, language_heavy=True, ce_weight=10.0, kd_weight=10.0),
        # here the labels say more than the teacher, who never saw a digit: CE at full weight, KD at a tenth
        _source(data, "long", 0.25, language_heavy=True, ce_weight=4.0, kd_weight=0.1),
        _source(data, "short", 0.25, ce_weight=24.0),  # a few tokens against the many of the text
    ]


def tasks(data: Path) -> list[dict[str, Any]]:
    """Held-out items: language scored (cloze, perplexity) and spoken (next words), and answers about pictures."""
    return [
        {"name": "cloze", "kind": "language", "type": "multiple_choice", "path": str(data / "cloze.jsonl")},
        {"name": "perplexity", "kind": "language", "type": "perplexity", "path": str(data / "perplexity.jsonl")},
        {"name": "next_word", "kind": "language", "type": "exact_match", "path": str(data / "unread.jsonl")},
        *(
            {"name": name, "kind": "vision", "type": "exact_match", "path": str(data / f"{name}.jsonl")}
            | {"max_new_tokens": longest}
            for name, longest in (("digits", 8), ("sentences", 24))
        ),
    ]


def _write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
