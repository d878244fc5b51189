"""Settings of the corpus: its sources, how they are mixed, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lingu_ray.config.base import NAME, Section, duplicates, rule
from lingu_ray.config.facts import MAY_CHANGE, NOT_COMPARED, NOT_IN_FINGERPRINT, SAME_HELD_OUT, SEARCHABLE
from lingu_ray.paths import DataFolder, DataPath

Format = Literal[
    "messages",
    "cauldron",
    "finevision",
    "llava",
    "prompt_completion",
    "instruction",
    "text",
    "scienceqa",
    "image_folder",
    "webdataset",
    "template",
]
READ_BY = {  # the formats that read a setting; other formats find its value in their records
    "prompt": ("text", "image_folder", "webdataset", "template"),
    "answer": ("image_folder", "template"),
    "image": ("template",),
    "prompt_words": ("text",),
    "answer_words": ("text",),
}


class SourceConfig(Section):
    """One source of the corpus."""

    name: str = Field(pattern=NAME, description="unique name; metrics and counts carry it")
    format: Format = Field(description="what a record looks like (see docs/guide.md, 'Corpus')")
    # the fingerprint, and the check of a resumed run, take the content of a source's files instead of their paths
    path: Annotated[DataPath, MAY_CHANGE, NOT_IN_FINGERPRINT] = Field(
        description="file, glob, folder (also `datasets.save_to_disk`), local or s3://…, gs://…; or hub id of a dataset"
    )
    # as for `path`: the fingerprint has the content of the revision
    revision: Annotated[str | None, MAY_CHANGE, NOT_IN_FINGERPRINT] = Field(
        None, min_length=1, description="hub: branch, tag or commit; null: main"
    )
    subset: str | None = Field(None, description="hub: configuration name")
    split: str = Field(
        "train",
        description="hub, save_to_disk, a folder of files that are named by splits: which one is read",
    )
    language_heavy: Annotated[bool, SAME_HELD_OUT] = Field(
        False, description="distilled under `policy: selective`; for long answers in prose"
    )
    weight: Annotated[float | None, SAME_HELD_OUT] = Field(
        None, gt=0, description="share in the mixture, relative to the others; give it to all sources or to none"
    )
    ce_weight: Annotated[float, NOT_IN_FINGERPRINT, SAME_HELD_OUT] = Field(
        1.0, ge=0, description="weight of its tokens' cross-entropy"
    )
    kd_weight: Annotated[float, NOT_IN_FINGERPRINT, SAME_HELD_OUT] = Field(
        1.0, ge=0, description="weight of its tokens' KD term, where the policy distills it"
    )
    limit: PositiveInt | None = Field(
        None, description="use the first N records only, of plain text N lines; null: all"
    )
    image_root: Annotated[DataFolder | None, MAY_CHANGE, NOT_IN_FINGERPRINT] = Field(
        None, description="folder, s3://… or gs://…, that relative image paths start from; null: the record file's own"
    )
    prompt: str | None = Field(None, description="question, for formats that have none: format string over the columns")
    answer: str | None = Field(None, description="`template`, `image_folder`: format string of the answer")
    image: str | None = Field(None, description="`template`: column that holds the image path or bytes")
    prompt_words: PositiveInt = Field(32, description="`text`: words of a passage that are the prompt")
    answer_words: PositiveInt = Field(64, description="`text`: words after the prompt that are the answer")

    @rule
    def _template_is_complete(self) -> SourceConfig:
        if self.format == "template" and not (self.prompt and self.answer):
            raise ValueError(f"source {self.name}: format 'template' needs `prompt` and `answer` format strings")
        return self

    @rule
    def _settings_are_read(self) -> SourceConfig:
        for name, formats in READ_BY.items():
            if self.format not in formats and not self.has_default(name):
                raise ValueError(
                    f"source {self.name}: `{name}` is read by format {', '.join(formats)}, not by {self.format!r}: "
                    "leave it out"
                )
        return self


class CorpusConfig(Section):
    """The mixed corpus: built once by Ray Data, later found by its fingerprint."""

    sources: Annotated[tuple[SourceConfig, ...], SEARCHABLE] = Field((), description="the data sets that are mixed")
    rows: Annotated[PositiveInt | None, SEARCHABLE, SAME_HELD_OUT] = Field(
        None,
        description="rows of the mixture; null: until every source was used once, smaller ones repeat by weight",
    )
    seed: Annotated[int, SEARCHABLE, SAME_HELD_OUT] = Field(0, description="seed of the rows' order")
    validation_rows: Annotated[int, SEARCHABLE] = Field(
        64, ge=0, description="rows of each source that are held out for validation"
    )
    max_length: Annotated[PositiveInt, SEARCHABLE] = Field(
        2048, description="longest sample in tokens, image tokens included; longer answers are cut"
    )
    max_reject_rate: Annotated[float, SEARCHABLE, SAME_HELD_OUT] = Field(
        0.05, ge=0, le=1, description="share of bad rows of a source above which the build stops"
    )
    rows_per_shard: Annotated[PositiveInt, SEARCHABLE, SAME_HELD_OUT] = Field(
        1024, description="rows of one parquet file"
    )
    if_changed: Annotated[Literal["refuse", "warn"], MAY_CHANGE, NOT_IN_FINGERPRINT, SEARCHABLE, SAME_HELD_OUT] = Field(
        "refuse", description="resuming after the data changed. refuse: an error; warn: train on with the new data"
    )
    cache_dir: Annotated[DataFolder | None, MAY_CHANGE, NOT_IN_FINGERPRINT, NOT_COMPARED, SAME_HELD_OUT] = Field(
        None, description="folder where corpora are kept, also s3://… or gs://…; null: <output_dir>/.corpora"
    )

    @rule
    def _sources_fit(self) -> CorpusConfig:
        names = [source.name for source in self.sources]
        if repeated := duplicates(names):
            raise ValueError(f"corpus.sources: names must be unique, found twice: {', '.join(repeated)}")
        unweighted = [source.name for source in self.sources if source.weight is None]
        if unweighted and len(unweighted) < len(names):
            raise ValueError(f"corpus.sources: give `weight` to all sources or to none; missing: {unweighted}")
        return self
