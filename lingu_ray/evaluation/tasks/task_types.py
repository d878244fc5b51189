"""From a row's fields to an item: what each task type expects, and what it asks of a model.

- `multiple_choice`, language: `query`, `choices`, `gold` (which choice follows the query), or `context_options`,
  `continuation`, `gold` (which context the continuation follows);
- `multiple_choice`, vision: `question`, `choices` (`A`, `B`, … where the question lists them itself), `gold`, `image`;
- `last_word`: `context`, `continuation`;
- `perplexity`: `text`, or `context`, `continuation` to score the continuation alone;
- `mme`: `question`, `gold` (yes or no), `category`, `group` (the name of its image), `image`; two questions an image;
- `vqa_accuracy`: `question`, `answer` (of several people, of whom some may have said nothing), `image`;
- others: `question`, `answer` (one or several), `image` (vision: one or several);
- all but `mme`, where `fields` names it: `cluster`, what items share that were not sampled one by one, as a passage.

Elsewhere `gold` is an index. `<image>` in a question marks where an image stands; without it they come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from string import ascii_uppercase
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.config import TaskConfig
from lingu_ray.config.evaluation import CLUSTER, KNOWN_FIELDS, SCORED_TYPES
from lingu_ray.content import fingerprint
from lingu_ray.corpus.check import check_text
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.evaluation.engines.engine import ScoreRequest
from lingu_ray.evaluation.metrics.short_answers import ENOUGH
from lingu_ray.evaluation.tasks.task import Asked, Item, ItemImage, Reference, Scored
from lingu_ray.literals import is_text_of_list, parsed

Fields = dict[str, Any]


class Malformed(Exception):
    """What is wrong with an item; the loader adds where it is."""


_OTHERWISE = (
    "a template under `fields` makes it of what the row has (of a number '{{number | string}}'), and `where` leaves "
    "rows out"
)


def is_scored(config: TaskConfig) -> bool:
    """Whether the task's texts are scored; else its questions are answered."""
    return config.kind == "language" and config.type in SCORED_TYPES


def scored(config: TaskConfig, name: str, fields: Fields) -> Scored:
    """An item of a task that scores texts.

    Raises:
        Malformed: a field is missing, or not of its kind.
        BadRecord: a text holds half a character.
    """
    pairs, reference = SCORED[config.type](config, fields)
    requests = tuple(ScoreRequest(context, continuation) for context, continuation in pairs)
    right = [pairs[reference["gold"]]] if "gold" in reference else pairs
    return Scored(name, requests, reference | _more(config, fields), tuple("".join(pair) for pair in right))


def asked(config: TaskConfig, name: str, fields: Fields, images: tuple[ItemImage, ...]) -> Asked:
    """An item of a task that asks a question.

    Raises:
        Malformed: a field is missing, or not of its kind; images are missing, or not those of the question.
        BadRecord: a text holds half a character.
    """
    question, reference = ASKED.get(config.type, _answered)(fields)
    if config.kind == "vision" and not images:
        raise Malformed("`image` is missing: let `fields.image` name the column, or `where` leave such rows out")
    if config.kind == "language" and images:
        raise Malformed("`image` in a language task, which text-only models answer too: set kind: vision")
    marks = question.count(PLACEHOLDER)
    if marks not in (0, len(images)):
        raise Malformed(f"`question` has {marks} {PLACEHOLDER} for {len(images)} images; mark all of them or none")
    quotable = tuple(f"{question} {answer}" for answer in reference.get("answers", ()))
    return Asked(name, question, images, reference | _more(config, fields), quotable)


def _more(config: TaskConfig, fields: Fields) -> Reference:
    """What is kept beside the fields of the type: the user's own columns, and which cluster the item is of."""
    more = {key: _field(fields, key) for key in config.fields if key not in KNOWN_FIELDS}
    return more | ({CLUSTER: _cluster(fields)} if CLUSTER in config.fields else {})


def _cluster(fields: Fields) -> str:
    """The identity of what the item shares with others."""
    value = _field(fields, CLUSTER)
    if not (isinstance(value, str) and value.strip()) and type(value) is not int:
        raise Malformed(f"`{CLUSTER}` must be a text that is not empty, or a whole number, found {value!r}")
    return fingerprint(value)


def _field(fields: Fields, key: str) -> Any:
    if key not in fields:
        raise Malformed(f"`{key}` is missing; there are: {', '.join(fields) or 'none'}")
    value = fields[key]
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            check_text(text)
    return value


def _text(fields: Fields, key: str) -> str:
    value = _field(fields, key)
    if not _is_filled(value):
        raise Malformed(f"`{key}` must be a text that is not empty, found {value!r:.80}; {_OTHERWISE}")
    return value


def _is_filled(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _texts(fields: Fields, key: str) -> list[str]:
    """A text, or a list of texts, as a list; none of them empty."""
    value = _field(fields, key)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(map(_is_filled, values)):
        raise Malformed(f"`{key}` must be a text or a list of texts, none empty, found {value!r:.80}; {_OTHERWISE}")
    return values


def _choices(fields: Fields, key: str) -> list[str]:
    """Several texts, as a list."""
    if is_text_of_list(text := _field(fields, key)):
        raise Malformed(
            f'`{key}` is the text of a list, {text!r:.80}: it is `fields.{key}`: "{{{{{key} | as_list}}}}", and so in '
            "other templates that look into it"
        )
    return _texts(fields, key)


def _gold(fields: Fields, options: list[str]) -> int:
    gold = _field(fields, "gold")
    if len(options) < 2 or type(gold) is not int or not 0 <= gold < len(options):
        raise Malformed(
            f"`gold` must be the index, from 0, of one of two or more options, found {gold!r:.80} of {len(options)}; "
            "of a letter it is `fields.gold`: \"{{'ABCD'.index(gold)}}\", of the right option's text "
            '"{{choices.index(gold)}}", of a number as CSV has it "{{gold | int}}"'
        )
    return gold


def _check_one_form(fields: Fields, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Refuse a row that is an item in both of a type's forms: which one is meant?"""
    if all(fields.get(key) is not None for key in (*one, *other)):
        forms = " and ".join(f"`{', '.join(form)}`" for form in (one, other))
        raise Malformed(f"there are both {forms}, each an item: take one out of the row, or name one's under `fields`")


Pairs = list[tuple[str, str]]


def _options(config: TaskConfig, fields: Fields) -> tuple[Pairs, Reference]:
    """Each option with its length in characters, for `acc_norm`."""
    _check_one_form(fields, ("query", "choices"), ("context_options", "continuation"))
    if "choices" in fields:
        query, options = _text(fields, "query"), _choices(fields, "choices")
        pairs = [(query, config.delimiter + option) for option in options]
        lengths = [len(option) for option in options]
    elif "context_options" in fields:
        options, continuation = _choices(fields, "context_options"), _text(fields, "continuation")
        pairs = [(option, config.delimiter + continuation) for option in options]
        lengths = [len(continuation)] * len(options)
    else:
        raise Malformed("neither `query, choices, gold` nor `context_options, continuation, gold`")
    return pairs, {"gold": _gold(fields, options), "lengths": lengths}


def _passage(config: TaskConfig, fields: Fields) -> tuple[Pairs, Reference]:
    for unit in config.fields.keys() & {"words", "bytes"}:
        if type(count := _field(fields, unit)) is not int or count < 1:
            raise Malformed(f"`{unit}` must be how many there are, a whole number above 0, found {count!r}")
    _check_one_form(fields, ("text",), ("context", "continuation"))
    if "text" in fields:
        return [("", _text(fields, "text"))], {}
    return _last_word(config, fields)


def _last_word(config: TaskConfig, fields: Fields) -> tuple[Pairs, Reference]:
    return [(_text(fields, "context"), config.delimiter + _text(fields, "continuation"))], {}


SCORED: dict[str, Callable[[TaskConfig, Fields], tuple[Pairs, Reference]]] = {
    "multiple_choice": _options,
    "last_word": _last_word,
    "perplexity": _passage,
}


def _answered(fields: Fields) -> tuple[str, Reference]:
    return _text(fields, "question"), {"answers": _texts(fields, "answer")}


def _lettered(fields: Fields) -> tuple[str, Reference]:
    """The question with lettered options, in the words of lmms-eval; as it is where the options are bare letters."""
    question, choices = _text(fields, "question"), _choices(fields, "choices")
    gold = _gold(fields, choices)
    if len(choices) > len(ascii_uppercase):
        raise Malformed(f"`choices` has {len(choices)} options, more than there are letters")
    if choices == list(ascii_uppercase[: len(choices)]):  # the question lists its options itself
        return question, {"choices": choices, "gold": gold}
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    prompt = f"{question}\n{listed}\nAnswer with the option's letter from the given choices directly."
    return prompt, {"choices": choices, "gold": gold}


def _yes_or_no(fields: Fields) -> tuple[str, Reference]:
    question, gold = _text(fields, "question"), _text(fields, "gold")
    if gold.lower() not in ("yes", "no"):
        raise Malformed(f"`gold` must be yes or no, found {gold!r}")
    return question, {"gold": gold.lower(), "category": _text(fields, "category"), "group": _text(fields, "group")}


def _of_people(fields: Fields) -> tuple[str, Reference]:
    """Every person's answer counts, an empty one, too: the VQA score is a mean over people."""
    value = parsed(_field(fields, "answer"))
    answers = ["" if one is None else one for one in value] if isinstance(value, list) else [value]
    if len(answers) < ENOUGH or not all(isinstance(one, str) for one in answers):
        raise Malformed(
            f"`answer` must be the answers of several people, {ENOUGH} at least (VQAv2 and TextVQA have ten), found "
            f"{value!r}; where one answer is right, set type: exact_match"
        )
    return _text(fields, "question"), {"answers": answers}


ASKED: dict[str, Callable[[Fields], tuple[str, Reference]]] = {
    "multiple_choice": _lettered,
    "mme": _yes_or_no,
    "vqa_accuracy": _of_people,
}


def check_together(config: TaskConfig, items: Sequence[Item]) -> None:
    """Refuse items that are not, together, what the type judges, or cannot be kept in one file.

    Raises:
        Malformed: an image of `mme` has not two questions; a field of the user's own is no column.
    """
    for key in config.fields.keys() & items[0].reference.keys():
        _check_column(key, [item.reference[key] for item in items])
    if config.type == "mme":
        _check_pairs(config, items)


def _check_column(key: str, values: list[Any]) -> None:
    try:
        pq.write_table(pa.table({key: values}), pa.BufferOutputStream())
    except (pa.ArrowException, OverflowError) as error:
        raise Malformed(f"`fields.{key}`: its values are no column that parquet takes: {error}") from error


def _check_pairs(config: TaskConfig, items: Iterable[Item]) -> None:
    """Each image of `mme` has two questions."""
    questions = Counter((item.reference["category"], item.reference["group"]) for item in items)
    for (category, group), count in questions.items():
        if count != 2:
            cut = f", unless limit {config.limit} cuts its second one off" if config.limit else ""
            raise Malformed(
                f"mme scores an image by its two questions, and `group` {group!r} of `category` {category!r} has "
                f"{count}: `group` must name the image{cut}"
            )
