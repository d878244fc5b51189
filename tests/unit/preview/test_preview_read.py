"""What is read of the sources: the counts, shares and rejects of the corpus's build, and examples spread over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from previewdata import preview_config, say
from processors import PROCESSORS, processor_of
from tiny import picture

from lingu_ray.config import Config
from lingu_ray.corpus.counts import checked_counts, good_rows, tally
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.normalize import load_encoder
from lingu_ray.corpus.order import draw_order
from lingu_ray.corpus.plan import split_tasks
from lingu_ray.corpus.row import Row
from lingu_ray.corpus.splits import split_source
from lingu_ray.inspect import InspectConfig, read_sources
from lingu_ray.preview.read import unplaced_row, without_images
from lingu_ray.preview.sources import SourcePreview, shares


def previews_of(config: Config, **settings: Any) -> dict[str, SourcePreview]:
    """Previews of the run's sources, by name."""
    found = read_sources(config, list(config.training_sources()), InspectConfig(**settings))
    return {preview.settings.name: preview for preview in found}


@pytest.mark.parametrize("weights", [None, (3, 1, 1)])
def test_counts_and_shares_are_those_of_the_build(my_data: Path, weights: tuple[int, ...] | None) -> None:
    """Read, accepted, truncated, rejected by reason, and the share of the mixture, which is by size without weights."""
    config = preview_config(my_data, validation_rows=10)
    if weights is not None:
        sources = [{**dict(s), "weight": w} for s, w in zip(config.corpus.sources, weights, strict=True)]
        config = preview_config(my_data, validation_rows=10, sources=sources)
    previews = previews_of(config, read=None)

    sources = config.training_sources()
    tasks = split_tasks(config, sources, [split_source(source) for source in sources], my_data / "student")
    meta = pa.concat_tables(table for task in tasks for table in task.tables())
    tallies = tally(meta)
    counts = checked_counts(tallies, config.corpus, sources)
    order = draw_order(config.corpus, sources, good_rows(tallies, sources))
    of_mixture = shares(list(previews.values()), config)
    for name, preview in previews.items():
        assert counts[name] == {
            "read": preview.read,
            "accepted": len(preview.lengths),
            "truncated": preview.truncated,
            "rejected": {reason: len(rejects) for reason, rejects in preview.rejected.items()},
        }
        share = of_mixture[name]
        assert share is not None and share.exact
        assert share.part == pytest.approx(order.used(name)["used"] / order.rows, abs=1.5 / order.rows)


def test_lengths_are_those_of_the_samples(my_data: Path) -> None:
    """Tokens and supervised ones of every row are those of its sample, though its images are not processed."""
    config = preview_config(my_data)
    encoder = load_encoder(str(my_data / "student"), config.corpus.max_length, False)
    for source in config.corpus.sources:
        [preview] = read_sources(config, [source], InspectConfig(read=None))
        tasks = split_tasks(config, (source,), [split_source(source)], my_data / "student")
        rows = [row for task in tasks for table in task.tables() for row in table.to_pylist() if not row["reason"]]
        samples = [encoder.encode(unplaced_row(row)) for row in rows]
        counted = [(length.tokens, length.supervised, length.images) for length in preview.lengths]
        expected = [
            (len(sample), int(sample.supervised_T.sum()), len(row["images"]))
            for sample, row in zip(samples, rows, strict=True)
        ]
        assert counted == expected


@pytest.mark.parametrize("family", PROCESSORS)
def test_answers_are_the_same_without_images(family: str) -> None:
    """Of every family: the answers of a row with images have as many tokens as with words in their place."""
    encoder = Encoder(processor_of(family), 512)
    row = Row("x", 0, say("<image>", "A stop sign.", "And <image>?", "Two."), [picture(0), picture(1)], True)
    counts = [encoder.encode(one).supervised_T.sum() for one in (row, without_images(row))]
    assert counts[0] == counts[1] > 0


def test_rejects_name_reason_and_origin(my_data: Path) -> None:
    """Each bad row is listed once, with the line that it stands in and what is wrong; nothing else is."""
    [chat] = read_sources(preview_config(my_data), [preview_config(my_data).corpus.sources[0]], InspectConfig())
    listed = {(reject.origin, reject.reason) for reject in chat.rejects}
    reasons = {2: "empty_answer", 4: "bad_json", 6: "missing_image", 7: "prompt_too_long"}
    assert listed == {(f"{my_data / 'chat.jsonl'}:{line}", reason) for line, reason in reasons.items()}
    assert "nowhere.png" in chat.rejected["missing_image"][0].detail
    assert chat.complete and chat.read == 33 and not chat.stops_the_build


def test_a_part_is_spread_and_always_the_same(my_data: Path) -> None:
    """Fewer rows than there are come from start to end, are said to be a part, and are the same when read again."""
    config = preview_config(my_data)
    previews = previews_of(config, read=10, rows=3)
    for name, preview in previews.items():
        assert preview.read == 10 and not preview.complete, name
        assert len(preview.examples) == 3
    lines = [int(example.origin.rpartition(":")[2]) for example in previews["pictures"].examples]
    assert lines[0] == 1 and lines[-1] > 15
    again = previews_of(config, read=10, rows=3)
    assert {n: (p.lengths, p.rejects, p.examples) for n, p in again.items()} == {
        n: (p.lengths, p.rejects, p.examples) for n, p in previews.items()
    }


def test_shares_are_estimated_from_a_part(my_data: Path, tmp_path: Path) -> None:
    """Without weights: from the rows that file splits have; not at all where a source was not read."""
    config = preview_config(my_data)
    whole, part = (previews_of(config, read=count) for count in (None, 10))
    exact, about = (shares(list(previews.values()), config) for previews in (whole, part))
    for name, preview in part.items():
        assert preview.size == whole[name].size == whole[name].read
        found, wanted = about[name], exact[name]
        assert found is not None and wanted is not None and wanted.exact and not found.exact
        assert found.part == pytest.approx(wanted.part, abs=0.1)
    assert shares([whole["chat"]], config) == {"chat": None}


def test_one_row_is_found(my_data: Path) -> None:
    """By its file and line: as it is trained, cut at `max_length`, or why it is rejected; the counts stay."""
    found = previews_of(preview_config(my_data), row="chat.jsonl:3")
    assert list(found) == ["chat"]
    [example] = found["chat"].examples
    assert example.length.tokens == 100 < example.length.whole and example.length.truncated
    assert example.segments[-1].role.label == "left out"
    assert sum(segment.tokens for segment in example.segments) == example.length.whole
    rejected = previews_of(preview_config(my_data), row="chat.jsonl:6")["chat"]
    assert [reject.reason for reject in rejected.wanted] == ["missing_image"] and not rejected.examples
    assert rejected.read == 33 and len(rejected.rejects) == 4


def test_no_weights_are_loaded(my_data: Path) -> None:
    """Student and teacher have none here; a new student, made of the teacher, needs none either."""
    config = preview_config(my_data)
    assert not list(my_data.rglob("*.safetensors"))
    vision = {"image_size": 32, "patch_size": 8, "pixel_shuffle": 2}
    new = Config.model_validate(config.model_dump() | {"student": {"from_teacher": vision}})
    for run in (config, new):
        [pictures] = read_sources(run, [run.corpus.sources[2]], InspectConfig(rows=1))
        [example] = pictures.examples
        assert [piece.count for s in example.segments for piece in s.pieces if "×" in piece.text] == [4]
