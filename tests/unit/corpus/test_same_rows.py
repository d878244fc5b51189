"""A conversation in whatever format and kind of file, with pictures named in whatever way, is the same row."""

import base64
import csv
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import picture

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.load_image import load_image
from lingu_ray.corpus.record import BadRecord
from lingu_ray.corpus.splits import split_source

Records = list[dict[str, Any]]
PICTURES = [picture(0, (8, 9)), picture(1, (9, 8), "JPEG")]
TEXTS = [
    "007",
    "None",
    "[1, 2]",
    "['a', 'b']",
    '{"a": null}',
    "a\r\nb",
    "a\rb",
    "a,\t\"b\";'c'",
    "  é\u2028 ",
    "中{x}\\n",
    "[{",
]
written = st.text("aé中 ,;\"'[]{}\\\n\r\t\u2028", min_size=1)
# a text in quotes is JSON, and `datasets` stores it as it stores what stands in the quotes
said = (st.sampled_from(TEXTS) | written).filter(
    lambda text: text.strip() and text[0] not in '\n"' and text[-1] != "\n"
)
asked = st.tuples(st.lists(st.integers(0, 1), max_size=2), said).map(
    lambda drawn: ("<image>" * len(drawn[0]) + drawn[1], drawn[0])
)
conversation = st.tuples(st.sampled_from([None, "S\nT"]), st.lists(st.tuples(asked, said), min_size=1, max_size=3))
Conversation = tuple[str | None, list[tuple[tuple[str, list[int]], str]]]


def turns(drawn: Conversation, role: str = "role", content: str = "content") -> Records:
    """The conversation's turns, the system prompt among them, with a text each."""
    system, pairs = drawn
    found = [{role: "system", content: system}] if system else []
    for (question, _), answer in pairs:
        found += [{role: "user", content: question}, {role: "assistant", content: answer}]
    return found


def in_parts(drawn: Conversation) -> Records:
    """The same with questions in parts."""
    return [turn | {"content": parts(turn["content"])} if turn["role"] == "user" else turn for turn in turns(drawn)]


def parts(text: str) -> Records:
    pieces = re.split("(<image>)", text)
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces if piece]


def last(question: str, answer: str) -> Callable[[Conversation], dict[str, Any]]:
    """Question and answer of the last turn under these names, after the others."""

    def record(drawn: Conversation) -> dict[str, Any]:
        system, [*earlier, ((asks, _), answers)] = drawn
        return {
            question: asks,
            answer: answers,
            "system": system,
            "history": [[asks, says] for (asks, _), says in earlier],
        }

    return record


ROWS: dict[str, tuple[str, Callable[[Conversation], dict[str, Any]]]] = {
    "messages": ("messages", lambda drawn: {"messages": turns(drawn)}),
    "all in parts": (
        "messages",
        lambda drawn: {"messages": [turn | {"content": parts(turn["content"])} for turn in turns(drawn)]},
    ),
    "llava": ("llava", lambda drawn: {"conversations": turns(drawn, "from", "value")}),
    "cauldron": (
        "cauldron",
        lambda drawn: {"system": drawn[0], "texts": [{"user": q, "assistant": a} for (q, _), a in drawn[1]]},
    ),
    "swift": ("prompt_completion", last("query", "response")),
    "alpaca": ("instruction", last("instruction", "output")),
}


def as_text(records: Records) -> Records:
    """Lists as JSON text, null as nothing."""
    return [
        {key: json.dumps(value) if isinstance(value, list) else value or "" for key, value in record.items()}
        for record in records
    ]


def write_lines(records: Records, path: Path) -> None:
    lines = (json.dumps(dict(reversed(record.items())), ensure_ascii=False) for record in records)
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())


def write_arrow(records: Records, path: Path) -> None:
    table = pa.Table.from_pylist(records)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


def write_tsv(records: Records, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(records[0]), delimiter="\t")
        table.writeheader()
        table.writerows(as_text(records))


def write_json_columns(records: Records, path: Path) -> None:
    datasets.Dataset.from_list(records, on_mixed_types="use_json").to_parquet(path)


FILES: dict[str, Callable[[Records, Path], Any]] = {
    "a.jsonl": write_lines,
    "a.json.gz": lambda records, path: path.write_bytes(gzip.compress(json.dumps(records, indent=1).encode())),
    "text.jsonl": lambda records, path: write_lines(as_text(records), path),
    "a.parquet": lambda records, path: pq.write_table(pa.Table.from_pylist(records), path, row_group_size=1),
    "a.arrow": write_arrow,
    "a.tsv": write_tsv,
    "pandas.csv": lambda records, path: pd.DataFrame(records).to_csv(path, index=False),
    "saved": lambda records, path: datasets.Dataset.from_list(records).save_to_disk(path),
    "json.parquet": write_json_columns,
}
WAYS: dict[str, Callable[[Path], Any]] = {
    "relative": lambda path: path.name,
    "absolute": str,
    "file": lambda path: path.as_uri(),
    "data": lambda path: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
    "base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
    "object": lambda path: {"bytes": None, "path": path.name},
}


def rows_of(source: SourceConfig) -> Iterator[tuple[list[Any], list[bytes]]]:
    """Messages and pictures of all rows of a source; a bad one is raised."""
    for split in split_source(source):
        for _, record in split.records():
            if isinstance(record, BadRecord):
                raise record
            for row in FORMATS[source.format](record, source):
                folder = image_folder(source, split)
                yield row.messages, [load_image(reference, folder) for reference in row.images]


@settings(max_examples=12, deadline=None)
@given(drawn=st.lists(conversation, min_size=1, max_size=3), data=st.data())
def test_a_conversation_is_one_row_however_it_is_written(drawn, data):
    """Nothing of texts, turns and pictures depends on the format, the kind of file, or how pictures are given."""
    shown = [[number for (_, numbers), _ in pairs for number in numbers] for _, pairs in drawn]
    expected = [
        (turns(one), [PICTURES[number] for number in numbers]) for one, numbers in zip(drawn, shown, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = [folder / "0.png", folder / "1.jpg"]
        for path, content in zip(paths, PICTURES, strict=True):
            path.write_bytes(content)
        for name, write in FILES.items():
            format, record = ROWS[data.draw(st.sampled_from(sorted(ROWS)), name)]
            if name == "json.parquet":
                format, record = "messages", lambda one: {"messages": in_parts(one)}
            way = WAYS[data.draw(st.sampled_from(sorted(WAYS)))]
            images = [{"images": [way(paths[number]) for number in numbers]} for numbers in shown]
            write([record(one) | of_it for one, of_it in zip(drawn, images, strict=True)], folder / name)
            source = SourceConfig.model_validate(
                {"name": "s", "format": format, "path": str(folder / name), "image_root": scratch}
            )
            assert list(rows_of(source)) == expected, name
