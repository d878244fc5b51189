"""Look at data before training: rows of each source as a run will train on them, token by token.

Takes what training takes, a recipe or a settings file with its settings, and trains nothing: of the models it loads
the student's processor and the teacher's configuration, no weights. Shown are

  counts    rows read, rejected (with reason, file and line) and truncated; lengths; each source's share of the mixture
  rows      token by token: what is learned from it (CE, KD, and with which weight), and what the teacher has of it
            (keys and values that the student donates, or a query that it computes itself)

in the terminal, and on a page for the browser, where each token tells its id. Name sources to see these alone.

examples:
  python -m lingu_ray.inspect my.yaml                           three rows of each source
  python -m lingu_ray.inspect my.yaml chat rows=10              ten rows of source chat
  python -m lingu_ray.inspect my.yaml chat row=chat.jsonl:17    the row at line 17, or why there is none
  python -m lingu_ray.inspect my.yaml read=null                 counts of all rows, not of a part
  python -m lingu_ray.inspect my.yaml corpus.max_length=512 teacher.scope=visual
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, PositiveInt

from lingu_ray.atomic import require_writable
from lingu_ray.config import Config, Section, SourceConfig
from lingu_ray.config.command_line import run_and_own
from lingu_ray.config.help_pages import Help
from lingu_ray.config.layout import meant
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import LocalPath
from lingu_ray.shell import shell_word
from lingu_ray.storage import origin, put, working_folder

if TYPE_CHECKING:
    from lingu_ray.preview.sources import SourcePreview


class InspectConfig(Section):
    """Settings of the command; all others are those of the run."""

    rows: int = Field(3, ge=0, description="rows of each source that are shown, spread over it")
    row: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="show one row instead, by its file and line or record (`chat.jsonl:17`); null: off"
    )
    read: PositiveInt | None = Field(
        200, description="rows of each source that are read for the counts, spread over it; null: all"
    )
    out: LocalPath | None = Field(None, description="the page; null: <output_dir>/inspect/<name>.html")


USAGE = "python -m lingu_ray.inspect [RECIPE | file.yaml] [SOURCE ...] [key=value ...]"
HELP = Help(USAGE, __doc__, InspectConfig)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    config, names, settings = run_and_own(arguments, HELP)

    from lingu_ray.preview.page import write_page
    from lingu_ray.preview.terminal import show

    config = with_demo(config)
    page = settings.out or working_folder(config.output_dir) / "inspect" / f"{config.name}.html"
    require_writable(page, "output_dir" if settings.out is None else "out")
    previews = read_sources(config, named_sources(config, names), settings)
    show(previews, config)
    write_page(previews, config, page)
    if isinstance(location := origin(page), str):
        put(page, location)
    print(f"page     {shell_word(location)}")


def with_demo(config: Config, usage: str = USAGE) -> Config:
    """The settings with the demo's models and data, where they are of the demo; raises UserError before these exist."""
    if config.demo is None:
        return config
    from lingu_ray.demo.prepare import filled, root_of

    config = filled(config)
    if not Path(str(config.student.path)).exists():
        raise UserError(
            f"the demo's models and data are not in {root_of(config).parent} yet: python -m lingu_ray.train, with the "
            f"same settings, makes them. For data of your own name the settings file\nusage: {usage}"
        )
    return config


def named_sources(config: Config, names: list[str]) -> list[SourceConfig]:
    """The sources of these names; without names all that the policy trains on.

    Raises:
        UserError: there is no such source.
    """
    known = {source.name: source for source in config.corpus.sources}
    for name in names:
        if name not in known:
            raise UserError(f"no source {name!r} in corpus.sources; {meant(name, known)}")
    return [known[name] for name in names] or list(config.training_sources())


def read_sources(config: Config, sources: list[SourceConfig], settings: InspectConfig) -> list[SourcePreview]:
    """Read the sources; loads the student's processor and, where a source is distilled, the teacher's configuration.

    Raises:
        UserError: these cannot be loaded; a source is not found, has no records or cannot be read; or none has the row
            wanted.
    """
    from transformers.utils import logging

    from lingu_ray.corpus.splits import split_source
    from lingu_ray.preview.read import SourceReader
    from lingu_ray.runtime.models.load import make_processor, teacher_vocabulary

    logging.set_verbosity_error()
    distilled = any(config.distills(source) for source in sources)
    with TemporaryDirectory() as folder:
        make_processor(config).save_pretrained(folder)
        vocabulary = teacher_vocabulary(config.teacher) if distilled else 0
        reader = SourceReader(config, folder, vocabulary, settings.read, settings.rows)
        if settings.row is None:
            return [reader.read(source) for source in sources]
        found = {source.name: reader.find(source, settings.row) for source in sources}
        if not any(found.values()):
            example, names = split_source(sources[0])[0].origin(1), ", ".join(found)
            raise UserError(
                f"row={settings.row}: no such record in {names}; name its file and line or number, as {example}"
            )
        return [reader.read(source, found[source.name]) for source in sources if found[source.name]]


if __name__ == "__main__":
    run_command(main)
