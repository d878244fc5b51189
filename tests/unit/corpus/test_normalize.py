"""From records to rows and rejects, without Ray: nothing that one record raises reaches beyond its own row."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processors import processor_of
from tiny import picture, tiny_processor

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus import named_file, normalize
from lingu_ray.corpus.counts import checked_counts, tally
from lingu_ray.corpus.encode import Encoder, PromptTooLong
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.load_image import load_image
from lingu_ray.corpus.normalize import SplitTask, as_reject
from lingu_ray.corpus.record import BadRecord, RawRow
from lingu_ray.corpus.splits import split_source
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, write_rows
from lingu_ray.errors import UserError

GOOD = {"prompt": "?", "completion": "Yes."}


class Panic(BaseException):
    """What a fault in the Rust code of a tokenizer raises is no Exception either."""


def table_of(
    folder: Path,
    records: list[dict[str, Any]],
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    format: Any = "prompt_completion",
    settings: dict[str, Any] | None = None,
) -> pa.Table:
    """The rows and rejects that a build's task makes of a file of the records."""
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(name="s", format=format, path=str(path), **settings or {})
    monkeypatch.setattr(normalize, "load_encoder", lambda *_: encoder)
    tasks = [
        SplitTask(i, split, source, ImageFolder(folder), "unused", 256, False)
        for i, split in enumerate(split_source(source))
    ]
    return pa.concat_tables(table for task in tasks for table in task.tables())


def rows(*arguments: Any) -> list[dict[str, Any]]:
    """The same as dictionaries."""
    return table_of(*arguments).to_pylist()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny_processor(), max_length=256)


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*args: Any, **named: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize("format", ["prompt_completion", "template", "text"])
def test_what_a_record_says_is_held_out_is_not_trained_on(tmp_path, encoder, monkeypatch, format):
    """In any format, also in metadata; names of files, or of parts of a data set, are no splits."""
    record = {**GOOD, "text": "word " * 40}
    held_out = [{"split": "test"}, {"data_split": "val"}, {"metadata": {"split": "Validation"}}, {"set_name": "dev"}]
    trained = [{"split": "train"}, {"split": "train2014"}, {"split": None}, {"split": 3}, {"subset": "test"}, {}]
    settings = {"prompt": "{prompt}", "answer": "{completion}"} if format == "template" else {}
    found = rows(tmp_path, [record | more for more in held_out + trained], encoder, monkeypatch, format, settings)
    assert [row["reason"] for row in found] == ["held_out"] * len(held_out) + [None] * len(trained)
    assert "put those that are meant into a file of their own" in found[0]["excerpt"]


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no text"),
        KeyError("x"),
        struct.error("unpack"),
        MemoryError(),
        RecursionError("deep"),
        Panic("called `Option::unwrap()`"),
        UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates"),
    ],
)
@pytest.mark.parametrize("place", ["format", "check"])
def test_whatever_a_row_raises_is_its_reject(tmp_path, monkeypatch, encoder, place, error):
    """Raised in the format's code or in a check: the row is a reject that says what and where; the others are good."""

    def odd(record: dict[str, Any], source: SourceConfig) -> Any:
        yield RawRow([{"role": "user", "content": "?"}, {"role": "assistant", "content": record["completion"]}], [])
        if record.get("odd"):
            raise error

    if place == "format":
        monkeypatch.setitem(FORMATS, "prompt_completion", odd)
    else:
        length = encoder.length
        monkeypatch.setattr(
            encoder, "length", lambda row: raises(error)() if "odd" in str(row.messages) else length(row)
        )
    found = rows(tmp_path, [GOOD, GOOD | {"completion": "odd", "odd": True}, GOOD], encoder, monkeypatch)
    [reject] = [row for row in found if row["reason"]]
    assert [row["origin"][-2:] for row in found if not row["reason"]] == [":1", *[":2"] * (place == "format"), ":3"]
    assert reject["origin"] == f"{tmp_path}/data.jsonl:2"
    assert reject["reason"] == type(error).__name__
    assert str(error)[:10] in reject["excerpt"]
    assert "test_normalize.py:" in reject["excerpt"]


@pytest.mark.parametrize("error", [UserError("of the whole source"), KeyboardInterrupt()])
def test_what_is_not_of_the_row_ends_the_build(tmp_path, monkeypatch, encoder, error):
    """An error of the whole source, and Ctrl-C, are no rejects."""
    monkeypatch.setattr(encoder, "length", raises(error))
    with pytest.raises(type(error)):
        rows(tmp_path, [GOOD], encoder, monkeypatch)


def test_a_file_system_that_fails_ends_the_build(tmp_path, monkeypatch, encoder):
    """Images that it does not give would be rejects of a corpus that is kept, though they are there."""
    (tmp_path / "a.png").write_bytes(picture())
    monkeypatch.setattr(named_file, "WAITS_S", ())
    monkeypatch.setattr(Path, "read_bytes", raises(OSError(5, "Input/output error")))
    with pytest.raises(UserError, match=r"a.png: the file system does not give it"):
        rows(tmp_path, [GOOD, GOOD | {"image": "a.png"}], encoder, monkeypatch)


def test_a_fault_of_every_row_ends_the_build(tmp_path, monkeypatch, encoder):
    """A mistake that is not in the data rejects all rows; the build ends, and says what was raised, and where first."""
    monkeypatch.setattr(encoder, "length", raises(AttributeError("'Encoder' has no attribute 'lenght'")))
    table = table_of(tmp_path, [GOOD] * 3, encoder, monkeypatch)
    source = SourceConfig(name="s", format="prompt_completion", path="x")
    with pytest.raises(UserError) as error:
        checked_counts(tally(table), CorpusConfig(), (source,))
    assert "3 of 3 rows (100.0%) are bad" in str(error.value)
    assert (
        f"3 × AttributeError, first at {tmp_path}/data.jsonl:1: "
        "AttributeError: 'Encoder' has no attribute 'lenght' (test_normalize.py:"
    ) in str(error.value)


def test_as_many_bad_rows_as_the_rate_says_are_no_error():
    """Whatever the product of floats is: 29 of 100 are 0.29, and 30 are more."""
    source = SourceConfig(name="s", format="text", path="x")
    for percent in range(1, 100):
        kinds = {None: 100 - percent, "bad_json": percent}
        names = ("source", "reason", "rows", "truncated", "origin", "excerpt")
        tallies = pa.Table.from_pylist(
            [dict(zip(names, ("s", k, n, 0, "x:1", ""), strict=True)) for k, n in kinds.items()]
        )
        counts = checked_counts(tallies, CorpusConfig(max_reject_rate=percent / 100), (source,))
        assert counts["s"]["accepted"] == 100 - percent
        with pytest.raises(UserError, match="are bad"):
            checked_counts(tallies, CorpusConfig(max_reject_rate=(percent - 1) / 100), (source,))


def test_a_template_that_refuses_a_role(tmp_path, monkeypatch):
    """A chat template that raises for a system message costs the rows that have one, which are told what it said."""
    processor = tiny_processor()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    processor.chat_template = refusing + processor.chat_template
    found = rows(tmp_path, [GOOD, GOOD | {"system": "Be brief."}], Encoder(processor, 256), monkeypatch)
    assert [row["reason"] is None for row in found] == [True, False]
    assert "no system role" in found[1]["excerpt"]


def test_an_image_that_the_processor_refuses(tmp_path, monkeypatch):
    """Qwen-VL's processor refuses pictures 200 times as wide as high: the row is a reject, not the build's end."""
    (tmp_path / "wide.png").write_bytes(picture(0, (804, 4)))
    (tmp_path / "good.png").write_bytes(picture(0, (32, 32)))
    records = [GOOD | {"image": "wide.png"}, GOOD | {"image": "good.png"}]
    found = rows(tmp_path, records, Encoder(processor_of("qwen2_vl"), 256), monkeypatch)
    assert [row["reason"] is None for row in found] == [False, True]
    assert "aspect ratio" in found[0]["excerpt"]


def test_a_row_is_rejected_in_the_same_words_each_time(tmp_path):
    """PIL's name the address of what it read from, which tells nobody anything."""
    told, read = set(), [bytes(at) + b"no image" for at in (1, 100, 10_000)]
    for content in read:
        with pytest.raises(BadRecord) as raised:
            load_image(content, ImageFolder(tmp_path))
        told.add(as_reject(raised.value)["excerpt"])
    assert told == {"UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"}


def test_broken_characters_can_be_stored(tmp_path, monkeypatch, encoder):
    """Half surrogate pairs in a text, a key, or a file's name make rejects that Arrow takes."""
    records = [GOOD | {"prompt": "\ud83d"}, {"pro\ud83dmpt": 1}, GOOD | {"image": "\udce4.png"}]
    found = rows(tmp_path, records, encoder, monkeypatch)
    assert [row["reason"] for row in found] == ["bad_text", "missing_field", "missing_image"]


def test_no_reject_commands_a_terminal(tmp_path, monkeypatch, encoder):
    """What a record's key or picture is called is told where rejects are, with its control characters escaped."""
    records = [{"\x1b]0;title\x07": 1}, GOOD | {"image": "\x9b2J.png"}]
    told = [row["excerpt"] for row in rows(tmp_path, records, encoder, monkeypatch)]
    assert r"there are: \x1b]0;title\x07" in told[0] and r"/\x9b2J.png: No such file" in told[1]


def test_flags_reach_the_sample(tmp_path, monkeypatch, encoder):
    """An answer that is no target of the loss is none when the corpus is read and encoded; no other one has a flag."""
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "5", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "No: 4."},
    ]
    [row] = rows(tmp_path, [{"messages": turns}], encoder, monkeypatch, "messages")
    table = pa.Table.from_pylist([row | {"position": 0}], ROW_SCHEMA)
    write_rows(table, tmp_path / "validation.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps({"rows": 0, "rows_per_shard": 1, "sources": {"s": {}}}))
    [read] = Corpus(tmp_path).validation()["s"]
    assert read.messages == [turns[0], {"role": "assistant", "content": "5", "supervised": False}, *turns[2:]]
    sample = encoder.encode(read)
    targets = encoder.tokenizer.decode(sample.input_ids_T[sample.supervised_T])
    assert targets.strip() == "No: 4.<end_of_utterance>"
    begin = int(sample.supervised_T.nonzero()[0])
    short = Encoder(encoder.processor, max_length=begin)  # room for the answer that is no target alone
    for refused in (short.encode, short.length):
        with pytest.raises(PromptTooLong):
            refused(read)


def test_a_bad_passage_costs_itself_alone(tmp_path, monkeypatch, encoder):
    """Of a record with several rows a bad one is left out, and the following ones are read."""

    def document(record: dict[str, Any], source: SourceConfig) -> Any:
        for text in ("good", "", "good"):
            yield RawRow([{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], [])
        raise BadRecord("too_short", "the rest")

    monkeypatch.setitem(FORMATS, "text", document)
    found = rows(tmp_path, [{"text": "x"}], encoder, monkeypatch, "text")
    assert [row["reason"] for row in found] == [None, "empty_answer", None, "too_short"]
