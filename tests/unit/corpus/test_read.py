import json
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture, tiny_processor

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.read import StepReader
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, shard_name, write_rows
from lingu_ray.errors import UserError

ROWS, PER_SHARD = 250, 100


def record(position: int, image: bytes | None = None) -> dict:
    question = ("<image>" if image else "") + f"question {position}"
    return {
        "source": "even" if position % 2 == 0 else "odd",
        "position": position,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "word " * (position % 7 + 1)},
        ],
        "images": [image] if image else [],
        "distill": position % 2 == 0,
    }


def write_corpus(folder: Path, records: list[dict]) -> Corpus:
    folder.mkdir()
    for shard in range(0, len(records), PER_SHARD):
        table = pa.Table.from_pylist(records[shard : shard + PER_SHARD], ROW_SCHEMA)
        write_rows(table, folder / shard_name(shard // PER_SHARD))
    write_rows(pa.Table.from_pylist(records[:4], ROW_SCHEMA), folder / "validation.parquet")
    manifest = {"rows": len(records), "rows_per_shard": PER_SHARD, "sources": {"even": {}, "odd": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Corpus(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    images = [picture(seed) for seed in range(3)]
    records = [record(p, images[p % 3] if p % 5 == 0 else None) for p in range(ROWS)]
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c", records)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny_processor(), max_length=128)


def reader(corpus, encoder, rank=0, world_size=1, start_step=0, steps=4, rows_per_step=12, **settings) -> StepReader:
    make = settings.pop("make", list)  # the samples as they are
    return StepReader(corpus, encoder, make, rows_per_step, rank, world_size, start_step, steps, **settings)


def positions_of(steps: list) -> list[list[int]]:
    return [[sample.position for sample in samples] for samples in steps]


def test_rows_are_found_by_position(corpus):
    """Any positions, in any order, over shards and row groups; the row says where it is from."""
    rows = corpus.rows([249, 0, 99, 100, 64])
    assert [row.position for row in rows] == [249, 0, 99, 100, 64]
    assert rows[1].images == [picture(0)]
    assert rows[1].messages[0] == {"role": "user", "content": "<image>question 0"}
    assert str(rows[0]) == "row 249 (source odd)"
    assert len(corpus) == ROWS
    for outside in (-1, ROWS):
        with pytest.raises(IndexError, match=f"position {outside} is outside"):
            corpus.rows([outside])


def test_validation_by_source(corpus):
    """Held-out rows come grouped by source."""
    held_out = corpus.validation()
    assert {name: [row.position for row in rows] for name, rows in held_out.items()} == {"even": [0, 2], "odd": [1, 3]}


def test_a_folder_without_a_corpus(tmp_path):
    """Opening what is no corpus says so."""
    with pytest.raises(UserError, match=r"manifest.json cannot be read"):
        Corpus(tmp_path)


def test_a_corpus_of_ten_billion_rows_takes_no_memory(tmp_path, encoder):
    """Its manifest is all that is there: it is opened, and a late step's positions found, in less than a megabyte."""
    rows = 10_000_000_000
    (tmp_path / "manifest.json").write_text(json.dumps({"rows": rows, "rows_per_shard": 1024, "sources": {"s": {}}}))
    tracemalloc.start()
    corpus = Corpus(tmp_path)
    with reader(corpus, encoder, rank=5, world_size=1000, start_step=0, steps=0, rows_per_step=4096) as steps:
        positions = steps.positions(10**9 + 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start = (10**9 + 7) * 4096
    assert positions == [place % rows for place in range(start + 20, start + 24)]
    assert peak < 1 << 20
    with pytest.raises(UserError, match=r"validation.parquet is missing; delete the corpus"):
        corpus.check_files()


def test_held_out_rows_that_are_damaged(tmp_path):
    """They are named with the cure, as a shard is."""
    held_out = write_corpus(tmp_path / "c", [record(p) for p in range(10)])
    (tmp_path / "c" / "validation.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"validation\.parquet is damaged; delete the corpus, and it is built again"):
        held_out.validation()


@pytest.mark.parametrize("name", ["manifest.json", "bytes.json"])
@pytest.mark.parametrize("content", [b"", b'{"rows": ', b"\0\0\0", b"\xff"])
def test_a_record_of_a_corpus_that_was_cut_off(tmp_path, name, content):
    """It is named with the cure."""
    folder = tmp_path / "c"
    write_corpus(folder, [record(p) for p in range(10)])
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{folder / name} is cut off, .*delete the corpus, and it is built again"):
        Corpus(folder).check_files()


def test_a_corpus_of_a_later_version(tmp_path):
    """It is refused by its number, before a row is taken for what it is not."""
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 99, "rows": 0, "rows_per_shard": 1, "sources": {}}))
    with pytest.raises(UserError, match=r"is a corpus of version 99, and this lingu_ray reads up to \d+: upgrade"):
        Corpus(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_share_each_step_exactly(corpus, encoder, world_size):
    """The union over ranks of every step is its positions once, past the end of the corpus too."""
    by_rank = []
    for rank in range(world_size):
        with reader(corpus, encoder, rank, world_size, steps=30) as steps:
            by_rank.append(positions_of(list(steps)))
    for step in range(30):
        found = sorted(position for of_rank in by_rank for position in of_rank[step])
        assert found == sorted(place % ROWS for place in range(step * 12, step * 12 + 12))


def test_resume_with_another_number_of_workers(corpus, encoder):
    """Steps 0–4 by two workers and 5–9 by three give the rows of ten steps by one: none twice, none skipped."""
    found = []
    for world_size, start, stop in ((2, 0, 5), (3, 5, 10)):
        for rank in range(world_size):
            with reader(corpus, encoder, rank, world_size, start, stop) as steps:
                found += [position for step in positions_of(list(steps)) for position in step]
    assert sorted(found) == list(range(120))


def test_samples_are_what_the_encoder_gives(corpus, encoder):
    """Each row's ids and source stand at its position, and are the same on every reading and any threads."""
    with reader(corpus, encoder) as steps:
        first = list(steps)
    with reader(corpus, encoder, threads=4, ahead=1) as steps:
        second = list(steps)
    for samples, again in zip(first, second, strict=True):
        assert [s.position for s in samples] == [s.position for s in again]
        for sample in samples:
            expected = encoder.encode(corpus.rows([sample.position])[0])
            assert sample.input_ids_T.tolist() == expected.input_ids_T.tolist()
            assert sample.source == ("odd" if sample.position % 2 else "even")


def test_a_row_that_fails_is_named_where_it_is_read(tmp_path, encoder):
    """An error in a background thread surfaces in the iterator, at its step, with the row's source and position."""
    corpus = write_corpus(tmp_path / "c", [record(p, b"broken" if p == 30 else None) for p in range(40)])
    with reader(corpus, encoder, steps=3) as steps:
        next(steps)
        next(steps)
        with pytest.raises(UserError, match=r"row 30 \(source even\) of corpus .* cannot be encoded: cannot identify"):
            next(steps)


def test_steps_are_made_in_the_background(corpus, encoder):
    """What is made of a step's samples is made by one thread beside the encoding ones, steps in order; its error
    surfaces at its step."""
    seen = []

    def make(samples):
        seen.append((threading.current_thread().name, samples[0].position))
        if samples[0].position == 24:
            raise ValueError("too long")
        return len(samples)

    with reader(corpus, encoder, make=make) as steps:
        assert [next(steps), next(steps)] == [12, 12]
        with pytest.raises(ValueError, match="too long"):
            next(steps)
        assert next(steps) == 12
    assert seen == [("collate_0", position) for position in (0, 12, 24, 36)]


def test_close_ends_the_threads(corpus, encoder):
    """Leaving in the middle of a run leaves no thread behind."""
    before = threading.active_count()
    with reader(corpus, encoder, steps=1000, ahead=8) as steps:
        next(steps)
    assert threading.active_count() == before


def test_no_row_is_read_beyond_the_look_ahead(corpus, encoder):
    """At most `ahead` steps beyond the one in hand are scheduled, so memory is bounded."""
    with reader(corpus, encoder, steps=100, ahead=3) as steps:
        for _ in range(5):
            next(steps)
            assert len(steps._pending) == 3


def test_written_rows_keep_their_schema(tmp_path):
    """Shards are plain parquet that any tool reads, in row groups that can be read in part."""
    table = pa.Table.from_pylist([record(p) for p in range(130)], ROW_SCHEMA)
    write_rows(table, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == table.to_pylist()
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 3
