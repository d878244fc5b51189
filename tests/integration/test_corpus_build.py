import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import picture, tiny_processor

from lingu_ray.config import Config
from lingu_ray.corpus import build, compression
from lingu_ray.corpus.build import build_corpus, build_planned
from lingu_ray.corpus.plan import plan_corpus
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def processor_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    tiny_processor(folder)
    return folder


def write_lines(path: Path, records: list[dict | str]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def words(folder: Path, name: str, count: int) -> dict:
    """A language-heavy source of `count` text rows."""
    records: list[dict | str] = [{"prompt": f"{name} {i}?", "completion": f"answer {i}"} for i in range(count)]
    path = write_lines(folder / f"{name}.jsonl", records)
    return {"name": name, "format": "prompt_completion", "path": str(path), "language_heavy": True}


def pictures(folder: Path, name: str, count: int) -> dict:
    """A vision-heavy source of `count` rows with an image each."""
    for i in range(3):
        (folder / f"{name}{i}.png").write_bytes(picture(i))
    records: list[dict | str] = [
        {"prompt": f"{name} {i}?", "completion": f"thing {i}", "image": f"{name}{i % 3}.png"} for i in range(count)
    ]
    return {"name": name, "format": "prompt_completion", "path": str(write_lines(folder / f"{name}.jsonl", records))}


def config(folder: Path, sources: list[dict], policy: str = "all", **corpus) -> Config:
    settings = {"validation_rows": 5, "rows_per_shard": 40, "max_length": 128, **corpus}
    return Config.model_validate(
        {
            "name": "run",
            "output_dir": folder / "runs",
            "student": {"path": "student"},
            "teacher": {"path": "teacher"},
            "distill": {"policy": policy},
            "corpus": {"sources": sources, **settings},
        }
    )


def questions(corpus: Corpus) -> list[str]:
    return [row.messages[0]["content"].removeprefix("<image>") for row in corpus.rows(range(len(corpus)))]


def test_data_that_change_while_they_are_read_make_no_corpus(tmp_path, processor_dir):
    """It would lie under the fingerprint of what they were, and be found by it when they are that again."""
    plan = plan_corpus(config(tmp_path, [words(tmp_path, "words", 120)]), processor_dir)
    words(tmp_path, "words", 121)
    with pytest.raises(UserError, match="source words: its data changed while the corpus was built"):
        build_planned(plan)
    assert not Path(plan.folder).exists()


def test_a_corpus_holds_every_good_row_once(tmp_path, processor_dir, caplog):
    """Without weights each row comes once, in training or held out; exact shards; counts in manifest and log."""
    sources = [words(tmp_path, "words", 120), pictures(tmp_path, "pictures", 60)]
    with caplog.at_level(logging.INFO, logger="lingu_ray"):
        corpus = build_corpus(config(tmp_path, sources), processor_dir)
    held_out = corpus.validation()
    assert {name: len(rows) for name, rows in held_out.items()} == {"words": 5, "pictures": 5}
    in_validation = [r.messages[0]["content"].removeprefix("<image>") for rows in held_out.values() for r in rows]
    expected = [f"words {i}?" for i in range(120)] + [f"pictures {i}?" for i in range(60)]
    assert sorted(questions(corpus) + in_validation) == sorted(expected)
    rows = corpus.rows(range(len(corpus)))
    assert [row.position for row in rows] == list(range(170))
    assert all(row.distill == (row.source == "words") for row in rows)
    for row in rows:
        number = int(row.messages[0]["content"].split()[1].removesuffix("?"))
        assert row.images == ([picture(number % 3)] if row.source == "pictures" else [])
        assert row.messages[1]["content"] == f"{'answer' if row.source == 'words' else 'thing'} {number}"
    sizes = [pq.read_metadata(corpus.folder / f"shard-{i:05d}.parquet").num_rows for i in range(5)]
    assert sizes == [40, 40, 40, 40, 10]
    assert corpus.manifest["sources"]["words"] == {
        "read": 120,
        "accepted": 120,
        "truncated": 0,
        "rejected": {},
        "used": 115,
        "passes": 1.0,
        "validation": 5,
        "distill": True,
    }
    assert "words: 120 read, 0 rejected, 0 truncated, 5 held out for validation, 115 to train on" in caplog.text


def test_weights_hold_in_every_prefix_and_small_sources_repeat(tmp_path, processor_dir):
    """In every prefix each source is within one row of its weight; a repeated one visits all its rows in each pass."""
    sources = [
        words(tmp_path, "a", 25) | {"weight": 3},
        words(tmp_path, "b", 45) | {"weight": 1},
        pictures(tmp_path, "c", 15) | {"weight": 1},
    ]
    corpus = build_corpus(config(tmp_path, sources), processor_dir)
    names = np.array([row.source for row in corpus.rows(range(len(corpus)))])
    for name, share in (("a", 0.6), ("b", 0.2), ("c", 0.2)):
        counts = np.cumsum(names == name)
        assert (abs(counts - share * np.arange(1, len(names) + 1)) < 1).all()
    asked = questions(corpus)
    of_a = [question for question in asked if question.startswith("a ")]
    passes = [of_a[i : i + 20] for i in range(0, 100, 20)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert len({question for question in asked if question.startswith("b ")}) == 40
    assert corpus.manifest["sources"]["a"]["passes"] == pytest.approx(len(of_a) / 20)


def test_any_number_of_blocks_gives_the_same_corpus(tmp_path, processor_dir, monkeypatch):
    """Files in one file split or in many, rows in one block or in many: the same bytes on disk."""
    sources = [words(tmp_path, "words", 100) | {"weight": 2}, pictures(tmp_path, "pictures", 50) | {"weight": 1}]
    contents = []
    normalize = build.normalize
    for number, (line_bytes, blocks) in enumerate(((1 << 20, None), (500, None), (3000, 7), (1 << 20, 30))):
        monkeypatch.setattr(compression, "LINES_BYTES", line_bytes)
        monkeypatch.setattr(
            build,
            "normalize",
            lambda t, f, n=blocks: normalize(t, f).repartition(n).materialize() if n else normalize(t, f),
        )
        settings = config(tmp_path, sources, cache_dir=str(tmp_path / str(number)))
        folder = build_corpus(settings, processor_dir).folder
        contents.append({path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})
    assert len(contents[0]) >= 5
    assert all(other == contents[0] for other in contents[1:])


def test_bad_rows_are_quarantined_with_reason_and_origin(tmp_path, processor_dir):
    """A row of every bad kind among good ones: each is in rejected/ with its line and counted; the good are used."""
    (tmp_path / "broken.png").write_bytes(picture()[:60])
    (tmp_path / "good.png").write_bytes(picture())
    good: list[dict | str] = [{"prompt": f"q {i}?", "completion": "a", "image": "good.png"} for i in range(20)]
    bad: dict[str, dict | str] = {
        "bad_image": {"prompt": "?", "completion": "a", "image": "broken.png"},
        "missing_image": {"prompt": "?", "completion": "a", "image": "gone.png"},
        "image_count": {"prompt": "<image>?", "completion": "a", "images": ["good.png", "good.png"]},
        "empty_answer": {"prompt": "?", "completion": " "},
        "wrong_type": {"prompt": "?", "completion": 5},
        "missing_field": {"prompt": "?"},
        "prompt_too_long": {"prompt": "word " * 200, "completion": "a"},
        "empty_message": {"prompt": "", "completion": "a"},
        "missing_media": {"prompt": "?", "completion": "a", "video": "1.mp4"},
        "bad_text": {"prompt": "half a pair \ud83d", "completion": "a"},
        "bad_json": '{"prompt": "?",',
    }
    path = write_lines(tmp_path / "mixed.jsonl", [*good, *bad.values(), {"prompt": "long?", "completion": "w " * 300}])
    source = {"name": "mixed", "format": "prompt_completion", "path": str(path)}
    corpus = build_corpus(config(tmp_path, [source], max_reject_rate=0.5), processor_dir)
    counts = corpus.manifest["sources"]["mixed"]
    assert counts["rejected"] == {reason: 1 for reason in bad}
    assert (counts["read"], counts["accepted"], counts["truncated"], counts["used"]) == (32, 21, 1, 16)
    rejected = pq.read_table(corpus.folder / "rejected").to_pylist()
    assert [(row["reason"], row["origin"]) for row in rejected] == [
        (reason, f"{path}:{line}") for line, reason in enumerate(bad, 21)
    ]
    assert all(row["source"] == "mixed" and row["excerpt"] for row in rejected)


def test_too_many_bad_rows_stop_the_build(tmp_path, processor_dir):
    """Above max_reject_rate the error names source, share, each reason with an example, and the cure."""
    records: list[dict | str] = [{"prompt": f"q {i}?", "completion": "" if i % 4 == 0 else "a"} for i in range(40)]
    path = write_lines(tmp_path / "holes.jsonl", [*records, {"prompt": 1, "completion": "a"}])
    source = {"name": "holes", "format": "prompt_completion", "path": str(path)}
    settings = config(tmp_path, [words(tmp_path, "words", 20), source], max_reject_rate=0.2)
    with pytest.raises(UserError) as error:
        build_corpus(settings, processor_dir)
    assert str(error.value) == (
        "source holes: 11 of 41 rows (26.8%) are bad, more than corpus.max_reject_rate=0.2:\n"
        f"  10 × empty_answer, first at {path}:1: no answer to 'q 0?'\n"
        f"  1 × wrong_type, first at {path}:41: 'prompt' is neither text nor turns: 1; say by `format: template` what "
        "of it is meant, as {prompt} or {prompt[0]}\n"
        "Fix the data, or raise corpus.max_reject_rate to leave these rows out"
    )
    assert list(settings.corpora_dir.iterdir()) == []


def test_too_few_good_rows(tmp_path, processor_dir):
    """A source that validation would use up is refused with the setting to change."""
    with pytest.raises(UserError, match=r"source few has 5 good rows, .*Lower corpus.validation_rows"):
        build_corpus(config(tmp_path, [words(tmp_path, "few", 5)]), processor_dir)


def test_built_once_and_found_again(tmp_path, processor_dir):
    """Same settings, files and processor: found. Another seed, a changed file, another processor: built again."""
    source = words(tmp_path, "words", 30)
    settings = config(tmp_path, [source])
    first = build_corpus(settings, processor_dir)
    written = os.stat(first.folder / "manifest.json").st_mtime_ns
    again = build_corpus(settings, processor_dir)
    assert again.folder == first.folder
    assert os.stat(again.folder / "manifest.json").st_mtime_ns == written
    unweighted = config(tmp_path, [source | {"ce_weight": 0.5}])  # of the loss, not of the corpus
    assert build_corpus(unweighted, processor_dir).folder == first.folder

    other_seed = build_corpus(config(tmp_path, [source], seed=1), processor_dir)
    assert sorted(questions(other_seed)) != questions(other_seed) != questions(first)
    other_processor = tmp_path / "processor"
    tiny_processor(other_processor)
    (other_processor / "chat_template.jinja").write_text(
        (processor_dir / "chat_template.jinja").read_text().replace("Assistant:", "Bot:")
    )
    with pytest.raises(UserError, match=r"^the student's chat template: .* Set one that .* of student.path"):
        build_corpus(settings, other_processor)
    words(tmp_path, "words", 31)
    changed = build_corpus(settings, processor_dir)
    assert changed.manifest["sources"]["words"]["read"] == 31
    assert len({first.folder, other_seed.folder, changed.folder}) == 3


def test_relative_paths_start_from_the_current_directory(tmp_path, processor_dir, monkeypatch):
    """`path` and `image_root` may be relative to where the command runs, wherever the tasks run."""
    (tmp_path / "art").mkdir()
    source = pictures(tmp_path / "art", "art", 10)
    (tmp_path / "data").mkdir()
    (tmp_path / "art" / "art.jsonl").rename(tmp_path / "data" / "art.jsonl")
    monkeypatch.chdir(tmp_path)
    corpus = build_corpus(config(Path(), [source | {"path": "data/*.jsonl", "image_root": "art"}]), processor_dir)
    assert corpus.manifest["sources"]["art"]["accepted"] == 10
    assert corpus.folder.is_absolute()


def test_language_only_leaves_the_other_sources_out(tmp_path, processor_dir):
    """Under `policy: language_only` the corpus is made of the language-heavy sources."""
    sources = [words(tmp_path, "words", 30), pictures(tmp_path, "pictures", 30)]
    corpus = build_corpus(config(tmp_path, sources, policy="language_only"), processor_dir)
    assert Counter(row.source for row in corpus.rows(range(len(corpus)))) == {"words": 25}


def test_every_row_can_be_encoded(tmp_path, processor_dir):
    """What the build lets through, the encoder takes; of a document only passages that are too long are rejected."""
    from transformers import AutoProcessor

    from lingu_ray.corpus.encode import Encoder

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("a " * 720 + "unpronounceable " * 8 + "a " * 64)
    (tmp_path / "shapes" / "red-circle").mkdir(parents=True)
    for i in range(8):
        (tmp_path / "shapes" / "red-circle" / f"{i}.jpg").write_bytes(picture(i, (40 + i, 20), "JPEG"))
    sources = [
        {"name": "docs", "format": "text", "path": str(tmp_path / "docs"), "prompt_words": 8},
        {"name": "shapes", "format": "image_folder", "path": str(tmp_path / "shapes")},
    ]
    corpus = build_corpus(config(tmp_path, sources, max_length=80, max_reject_rate=0.1), processor_dir)
    encoder = Encoder(AutoProcessor.from_pretrained(processor_dir), 80)
    samples = [encoder.encode(row) for row in corpus.rows(range(len(corpus)))]
    assert max(map(len, samples)) <= 80
    assert all(sample.supervised_T.any() for sample in samples)
    counts = corpus.manifest["sources"]["docs"]
    assert (counts["read"], counts["rejected"], counts["truncated"]) == (11, {"prompt_too_long": 1}, 10)
