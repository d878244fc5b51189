"""The pages of `--help`: an overview, one page per section of settings, or everything."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NoReturn

from pydantic import BaseModel

from lingu_ray.commands import as_called
from lingu_ray.config.help import section_lines, sections, setting_lines, settings_in, summary
from lingu_ray.config.layout import refolded, table, text_width, wrapped
from lingu_ray.config.settings import T
from lingu_ray.errors import UserError


class NoSettings(BaseModel):
    """The settings of a command that has none."""


@dataclass(frozen=True)
class Help(Generic[T]):
    """What a command says about itself.

    `usage` is one line, `about` says what the command does, `schema` has its settings; `chapters` are further pages by
    name, whose first line says what they are.
    """

    usage: str
    about: str
    schema: type[T]
    chapters: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """How the command is called, without arguments."""
        return " ".join(self.usage.split()[:3])

    def show(self, topics: list[str]) -> NoReturn:
        """Print the pages of the topics, or the short one, and exit.

        Raises:
            UserError: no such topic.
        """
        print(as_called(self.text(topics)))
        raise SystemExit(0)

    def text(self, topics: list[str]) -> str:
        """The pages of the topics (sections, settings, chapters, `all`); without any, the short page."""
        if not topics:
            return "\n".join([*self._head(), *self._contents()])
        return "\n\n".join(self._page(topic) for topic in topics)

    def _head(self) -> list[str]:
        own = setting_lines(self.schema, "", text_width())
        return [
            f"usage: {self.usage}",
            "",
            refolded(as_called(self.about.strip()), text_width()),
            *(["", "settings (key = default):", *own] if own else []),
        ]

    def _contents(self) -> list[str]:
        """The table of contents: a line for each section and chapter."""
        lines = {key: summary(place.section) for key, place in sections(self.schema).items()}
        lines |= {name: text.split("\n", 1)[0] for name, text in self.chapters.items()}
        if not lines:
            return []
        how = f"One of them: {self.command} --help {next(iter(lines))}. Everything: {self.command} --help all"
        width = text_width()
        title = "sections (--help SECTION explains the settings of one):"
        return ["", title, *table(lines, width), "", *wrapped("", how, width)]

    def _page(self, topic: str) -> str:
        key = topic.replace(".NAME", "")
        if key == "all":
            names = [name for name in (*sections(self.schema), *self.chapters) if "." not in name]
            return "\n\n".join(["\n".join(self._head()), *map(self._page, names)])
        if key in self.chapters:
            return f"{key}: {self.chapters[key]}"
        if key in sections(self.schema):
            return "\n".join(section_lines(self.schema, key, text_width()))
        if key in (settings := self._settings()):
            return settings[key]
        raise UserError(self._unknown(topic))

    def _settings(self) -> dict[str, str]:
        """The lines of every setting, by its key."""
        places = {"": (self.schema, ""), **{f"{key}.": place for key, place in sections(self.schema).items()}}
        return {
            key + name: "\n".join(lines)
            for key, (section, prefix) in places.items()
            for name, lines in settings_in(section, prefix, text_width()).items()
        }

    def _unknown(self, topic: str) -> str:
        """The message for a topic without a page."""
        topics = [*sections(self.schema), *self.chapters, "all"]
        keys = [*topics, *self._settings()]
        near = difflib.get_close_matches(topic, keys, n=1)
        ends = {key.rpartition(".")[2]: key for key in reversed(keys)}
        elsewhere = [ends[name] for name in difflib.get_close_matches(topic, ends, n=1)]
        if found := near or elsewhere:
            return f"--help: no section or setting {topic!r}; did you mean {found[0]}?"
        return f"--help: no section or setting {topic!r}; there are {', '.join(topics)}"
