"""The preview in a terminal: colors where it has them, words and marks everywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from statistics import mean, median

from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lingu_ray.config import Config
from lingu_ray.config.layout import text_width
from lingu_ray.preview.blocks import blocks
from lingu_ray.preview.sources import Example, SourcePreview, shares
from lingu_ray.preview.tokens import Piece, Segment
from lingu_ray.preview.words import (
    BESIDE,
    LEGEND,
    about_source,
    cut_words,
    image_words,
    length_words,
    run_words,
    share_words,
    stop_words,
)

BORDER = "▏"  # between tokens, where shades cannot tell them apart
HEAD, TAIL = 120, 40  # tokens of a long segment that are shown
PICTURES = 6  # of a row
REJECTS = 3  # of a reason
INTERVALS, BARS = 8, "▁▂▃▄▅▆▇█"

_COLORS = {  # text, and the two shades that tokens have in turn
    "context": ("#e8eaec", "#3d434a", "#4d545c"),
    "donated": ("#e6f2fc", "#14466e", "#1f5d8f"),
    "query": ("#1c1204", "#eba63f", "#f5c477"),
    "ce": ("#ffffff", "#74335c", "#8f4474"),
    "kd": ("#ffffff", "#00573e", "#007553"),
    "cut": ("#9aa4af", "#24282c", "#2f3439"),
}
_SPECIAL = Style(italic=True)
_MARKS = {
    "query": Style(underline=True),
    "ce": Style(bold=True),
    "kd": Style(bold=True, underline=True),
    "cut": Style(strike=True),
}


def show(previews: list[SourcePreview], config: Config) -> None:
    """Print the preview to standard output, as wide as the terminal; plain text where that is none."""
    width = None if sys.stdout.isatty() else text_width()
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        render(previews, config, console)
    print(re.sub(r" +$", "", printed.get(), flags=re.MULTILINE), end="")


def render(previews: list[SourcePreview], config: Config, console: Console) -> None:
    """Print the preview to a console."""
    console.print(Text.assemble(("lingu_ray inspect ", "dim"), (config.name, "bold")), Text(run_words(config)))
    console.print(_summary(previews, config))
    _print_legend(previews, console)
    for preview in previews:
        console.print()
        console.print(Rule(Text(preview.settings.name, "bold"), align="left", style="dim"))
        console.print(Text(about_source(preview)))
        for reject in preview.wanted:
            why = f"{reject.reason}, {reject.detail}"
            _print_line(console, "\n", (reject.origin, "bold"), " is rejected: ", why)
        for example in preview.examples:
            console.print()
            _print_example(example, console)
        _print_rejects(preview, console)
    console.print()


def _summary(previews: list[SourcePreview], config: Config) -> Padding:
    """A table of the sources."""
    of_mixture = shares(previews, config)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("source", "lengths", "tokens", "learned", "images", "truncated", "rejected", "share"):
        table.add_column(name, justify="left" if name in ("source", "lengths") else "right", no_wrap=name != "tokens")
    for preview in previews:
        tokens = [length.tokens for length in preview.lengths]
        table.add_row(
            Text(preview.settings.name, "bold"),
            sparkline(tokens),
            f"{mean(tokens):.0f} mean, {median(tokens):.0f} median, {max(tokens)} max" if tokens else "–",
            f"{sum(length.supervised for length in preview.lengths) / sum(tokens):.0%}" if tokens else "–",
            f"{mean(length.images for length in preview.lengths):.2g}" if tokens else "–",
            f"{preview.truncated}",
            Text(f"{len(preview.rejects)} of {preview.read}", "bold red" if preview.rejects_too_many else ""),
            share_words(of_mixture[preview.settings.name]),
        )
    return Padding(table, (1, 0))


def sparkline(lengths: list[int]) -> str:
    """Counts of `lengths` in equal intervals from the shortest to the longest, a bar each."""
    if not lengths:
        return ""
    low, width = min(lengths), max(max(lengths) - min(lengths), 1)
    counts = [0] * INTERVALS
    for length in lengths:
        counts[min((length - low) * INTERVALS // width, INTERVALS - 1)] += 1
    return "".join(BARS[-(-count * (len(BARS) - 1) // max(counts))] if count else " " for count in counts)


def _print_legend(previews: list[SourcePreview], console: Console) -> None:
    """What the roles mean that the rows have."""
    there = {segment.role.key for preview in previews for e in preview.examples for segment in e.segments}
    table = Table.grid(padding=(0, 2))
    for key, (name, meaning) in LEGEND.items():
        if key in there:
            table.add_row(Text(f" {name} ", _style(key, 0, console)), Text(meaning))
    console.print(table)
    if "donated" in there or "query" in there:
        console.print(Text(BESIDE, "dim"))


def _print_example(example: Example, console: Console) -> None:
    facts = [length_words(example.length), *([image_words(example.images)] if example.images else [])]
    _print_line(console, (example.origin, "bold"), " · ", " · ".join(facts))
    if example.length.truncated:
        console.print(Text(cut_words(example.length), "bold red"))
    if example.images and _colored(console) and console.color_system in ("truecolor", "256"):
        console.print(Columns([blocks(image) for image in example.images[:PICTURES]], padding=(0, 2)))
    console.print(_rows(example.segments, console))


def _print_line(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print a line with an origin; in a pipe it is never folded, so that the origin can be found and copied."""
    console.print(Text.assemble(*parts), soft_wrap=not console.is_terminal)


def _rows(segments: list[Segment], console: Console) -> Table:
    """The segments, each beside what is learned of it and what the teacher has of it."""
    has_teacher = any(segment.role.teacher for segment in segments)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for segment in segments:
        role = segment.role
        teacher = (role.teacher or "–") if has_teacher else ""
        table.add_row(role.label, teacher, "│", _text(segment, console))
    return table


def _text(segment: Segment, console: Console) -> Text:
    text = Text(overflow="fold")
    for index, piece in enumerate(_without_middle(segment.pieces)):
        style = _style(segment.role.key, index, console)
        text.append(_bordered(piece.text, index, console), style + _SPECIAL if piece.special else style)
    if text.plain.endswith("\n"):  # which would be an empty line
        text.right_crop(1)
    return text


def _without_middle(pieces: list[Piece]) -> Iterator[Piece]:
    """The pieces, of many the first and last alone."""
    hidden = pieces[HEAD:-TAIL]
    if len(hidden) <= TAIL:
        yield from pieces
        return
    yield from pieces[:HEAD]
    more = sum(piece.count for piece in hidden)
    yield Piece(f" … {more} tokens more … ", 0, "", True, more)
    yield from pieces[-TAIL:]


def _colored(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _bordered(text: str, index: int, console: Console) -> str:
    return text if _colored(console) or not index else BORDER + text


def _style(key: str, index: int, console: Console) -> Style:
    """Of the index-th token of a segment: color by role, shades in turn, and the role's mark."""
    mark = _MARKS.get(key, Style())
    if not _colored(console):
        return mark
    color, *shades = _COLORS[key]
    return mark + Style(color=color, bgcolor=shades[index % 2])


def _print_rejects(preview: SourcePreview, console: Console) -> None:
    if preview.stops_the_build:
        console.print(Text(f"\n{stop_words(preview)}", "bold red"))
    for reason, rejects in preview.rejected.items():
        console.print(Text.assemble("\nrejected: ", (f"{len(rejects)} × {reason}", "bold")))
        for reject in rejects[:REJECTS]:
            _print_line(console, "  ", (reject.origin, "bold"), " ", reject.detail)
        if len(rejects) > REJECTS:
            console.print(Text(f"  … {len(rejects) - REJECTS} more", "dim"))
