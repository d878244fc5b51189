"""The plan of a corpus: what it is made of, and where it is or will be. Needs no Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from lingu_ray import storage
from lingu_ray.config import Config, CorpusConfig, SourceConfig
from lingu_ray.corpus.fingerprint import fingerprint, source_content
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.normalize import SplitTask, load_encoder
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.splits import check_source, split_source
from lingu_ray.corpus.store import EARLIER_VERSIONS, VERSION

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of, and the folder where it is or will be.

    `contents`: fingerprints of the data by source. `earlier`: fingerprints that earlier versions gave the same corpus.
    """

    config: CorpusConfig
    sources: tuple[SourceConfig, ...]
    tasks: list[SplitTask]
    contents: dict[str, str]
    fingerprint: str
    folder: Path | str
    earlier: tuple[str, ...] = ()

    def as_earlier(self, fingerprint: str) -> Plan:
        """The plan of the corpus as an earlier version built it."""
        folder = storage.below(storage.place(storage.parent(str(self.folder))), fingerprint)
        return replace(self, fingerprint=fingerprint, folder=folder)


def plan_corpus(config: Config, processor_dir: Path) -> Plan:
    """Find the data of the training sources and plan the corpus made of it.

    Raises:
        UserError: data that is not found, has no records, or cannot be read; a chat template that no row could be
            trained with.
    """
    encoder = load_encoder(str(processor_dir.absolute()), config.corpus.max_length, config.student.trust_remote_code)
    if encoder.learns_last_answer_alone():
        log.warning(
            "the student's chat template shows earlier answers of a conversation otherwise than they are generated, as "
            "without their <think> block: of each row the last answer alone is learned. Give each answer a row of its "
            "own, or set a template that keeps answers as they are, in its chat_template.jinja"
        )
    sources = config.training_sources()
    splits = [split_source(source) for source in sources]
    for source, of_source in zip(sources, splits, strict=True):
        check_source(source, of_source)
    contents = {s.name: source_content(s, of_source, warn=True) for s, of_source in zip(sources, splits, strict=True)}
    mark, *earlier = (
        fingerprint(config.corpus, sources, contents, processor_dir, version)
        for version in (VERSION, *EARLIER_VERSIONS)
    )
    tasks = split_tasks(config, sources, splits, processor_dir)
    folder = storage.below(config.corpora_dir, mark)
    return Plan(config.corpus, sources, tasks, contents, mark, folder, tuple(earlier))


def split_tasks(
    config: Config, sources: tuple[SourceConfig, ...], splits: list[list[FileSplit]], processor_dir: Path
) -> list[SplitTask]:
    """One task for each file split of each source, numbered."""
    processor, length = str(storage.origin(processor_dir.absolute())), config.corpus.max_length
    trusted = config.student.trust_remote_code
    pairs = [(source, split) for source, of_source in zip(sources, splits, strict=True) for split in of_source]
    return [
        SplitTask(index, split, source, image_folder(source, split), processor, length, trusted)
        for index, (source, split) in enumerate(pairs)
    ]
