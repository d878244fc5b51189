"""Readers of the published text sets: training rows from T0's prompts, and items of the language tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result.files import read_json_lines
from benchmarks.result.groups import EVALUATION, TRAIN, VALIDATION, Shares, Split, assign, chance
from benchmarks.result.texts import group_documents, quoted_in, quotes, shown, templates
from lingu_ray.content import fingerprint

Row = dict[str, Any]
Rows = dict[Split, dict[str, list[Row]]]
"""Rows by split and by source or task."""

WIKIPEDIA = ("adversarial_qa", "dbpedia", "kilt", "quoref", "ropes", "wiki")
"""Prefixes of T0's tasks about encyclopedic text. They are left out, so that such text is a held-out domain."""
SHORT_PROMPT, SHORT_ANSWER = 80, 12  # most words of a training pair
DOCUMENT = 72  # least words of a prompt that is trained on as running text
PASSAGE = 160  # most words of a text whose perplexity is measured
T0_SHARES = Shares(0.04, 0.12)
ITEM_SHARES = Shares(0.1, 0.9)
LICENSES = {
    "t0": ("Apache-2.0", "yizhongw/self-instruct: T0 training prompts"),
    "arc_easy": ("CC BY-SA 4.0", "allenai/ai2_arc, ARC-Easy, test"),
    "piqa": ("AFL-3.0", "ybisk/piqa, validation"),
    "winogrande": ("Apache-2.0", "allenai/winogrande, winogrande_xl, validation"),
    "boolq": ("CC BY-SA 3.0", "google/boolq, validation"),
    "lambada": ("MIT", "EleutherAI/lambada_openai, test"),
}
FILES = {name: f"eval/{'lambada_openai' if name == 'lambada' else name}.jsonl" for name in LICENSES if name != "t0"}
T0_FILE = "text/t0_19k.jsonl"


@dataclass(frozen=True)
class Texts:
    """Rows of all texts; `template`: runs of words that belong to T0's templates; `left_out`: counts by reason."""

    rows: Rows
    template: set[int]
    left_out: Counter[str]


def read_texts(data: Path, seed: int) -> Texts:
    """All texts, split by document; training records that quote a held-out text are left out."""
    records = read_json_lines(data / T0_FILE)
    texts = [_pair(record) for record in records]
    template = templates(texts, [record["task"] for record in records])
    documents = group_documents(texts, template)
    split = assign([fingerprint(text) for text in texts], documents, set(), T0_SHARES, seed)
    rows = {TRAIN: {}, **_items(data, seed)}
    for held_out in (VALIDATION, EVALUATION):
        long = [place for place in split.members[held_out] if _is_document(records[place])]
        first = {documents.of(place): place for place in reversed(long)}
        rows[held_out]["t0_text"] = [_passage(records[place]["prompt"]) for place in first.values()]
    learned = _Learned(quoted_in(held_out_texts(rows), template), template, split.dropped)
    for place in split.members[TRAIN]:
        learned.add(records[place], documents.of(place))
    rows[TRAIN] = {"t0_short": learned.pairs, "t0_text": learned.passages}
    known = quoted_in((text for source in rows[TRAIN].values() for row in source for text in texts_of(row)), set())
    for held_out in (VALIDATION, EVALUATION):
        passages = rows[held_out]["t0_text"]
        rows[held_out]["t0_text"] = [row for row in passages if not shown(row["text"], known)]
        learned.left_out[f"{held_out}: shown in training"] = len(passages) - len(rows[held_out]["t0_text"])
    return Texts(rows, template, learned.left_out)


class _Learned:
    """T0's training records: short pairs, and one text of each document."""

    def __init__(self, protected: set[int], template: set[int], left_out: Counter[str]) -> None:
        """`protected`: runs of words in held-out texts; `template`: runs of words in templates."""
        self.protected, self.template, self.left_out = protected, template, left_out
        self.pairs: list[Row] = []
        self.passages: list[Row] = []
        self._documents: set[int] = set()

    def add(self, record: Row, document: int) -> None:
        """Take the record as a pair or as a text, or count why it is left out."""
        prompt, completion = record["prompt"], record["completion"]
        if not _is_used(record):
            self.left_out["encyclopedic"] += 1
        elif quotes(_pair(record), self.template) & self.protected:
            self.left_out["quotes a held-out text"] += 1
        elif _words(prompt) <= SHORT_PROMPT and _words(completion) <= SHORT_ANSWER:
            self.pairs.append({"prompt": prompt, "completion": completion})
        elif _is_document(record) and document not in self._documents:
            self._documents.add(document)
            self.passages.append({"text": prompt})
        else:
            self.left_out["neither a short pair nor a text of its own"] += 1


def held_out_texts(rows: Rows) -> Iterator[str]:
    """Every text of the held-out splits' language tasks."""
    for split in (VALIDATION, EVALUATION):
        for of_task in rows[split].values():
            for row in of_task:
                yield from texts_of(row)


def texts_of(row: Row) -> Iterator[str]:
    """The running texts of a row; of an item, one with each of its choices."""
    if "choices" in row:
        yield from (f"{row['query']} {choice}" for choice in row["choices"])
    elif "context_options" in row:
        yield from (f"{option} {row['continuation']}" for option in row["context_options"])
    elif "continuation" in row:
        yield f"{row['context']} {row['continuation']}"
    elif "completion" in row:
        yield _pair(row)
    elif "text" in row:
        yield row["text"]


def _items(data: Path, seed: int) -> Rows:
    """The items of the language tasks by split, shuffled by the seed, and BoolQ's passages as encyclopedic text."""
    rows: Rows = {VALIDATION: {}, EVALUATION: {}}
    for task, file in FILES.items():
        found = sorted(read_json_lines(data / file), key=lambda record: chance(fingerprint(record), seed))
        for split in rows:
            rows[split][task] = [_asked(record) for record in found if ITEM_SHARES.draw(_origin(record), seed) == split]
    for of_split in rows.values():
        passages = dict.fromkeys(_origin(record).removeprefix("Passage: ") for record in of_split["boolq"])
        of_split["encyclopedic"] = [_passage(text) for text in passages if _words(text) >= DOCUMENT]
    return rows


def _origin(record: Row) -> str:
    """The identity of an item for splitting: for BoolQ its passage, which several questions share."""
    return record["query"].partition("\nQuestion:")[0] if "query" in record else fingerprint(record)


def _asked(record: Row) -> Row:
    """An item as lm-evaluation-harness asks it: a question ends with `Answer:`."""
    return record | {"query": f"{record['query'].strip()}\nAnswer:"} if "query" in record else record


def _passage(text: str) -> Row:
    """The first `PASSAGE` words of a text, its line breaks kept."""
    words = text.split(" ")
    return {"text": " ".join(words[:PASSAGE])}


def _is_used(record: Row) -> bool:
    return not record["task"].startswith(WIKIPEDIA)


def _is_document(record: Row) -> bool:
    return _is_used(record) and _words(record["prompt"]) >= DOCUMENT


def _pair(record: Row) -> str:
    return f"{record['prompt']}\n{record['completion']}"


def _words(text: str) -> int:
    return len(text.split())
