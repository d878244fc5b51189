"""The preview as one self-contained HTML page: every token tells its id on hover, every source its lengths."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lingu_ray.atomic import write_text
from lingu_ray.config import Config
from lingu_ray.corpus.images import image_size
from lingu_ray.evaluation.thumbnail import data_uri, thumbnail
from lingu_ray.preview import words
from lingu_ray.preview.sources import Length, Share, SourcePreview, shares
from lingu_ray.preview.tokens import Piece, Role
from lingu_ray.report.pages import environment, svgs
from lingu_ray.report.plots import Panel

REJECTS = 10  # of a reason
BINS = 24
SIZE = (4.4, 2.6)  # inches of a histogram
SUPERVISED, PROMPT = "#009E73", "#999999"


def write_page(previews: list[SourcePreview], config: Config, path: Path) -> None:
    """Write the page; missing folders are made."""
    templates = environment(jinja2.PackageLoader("lingu_ray", "preview/templates"))
    of_mixture = shares(previews, config)
    text = templates.get_template("inspect.html").render(
        words=words,
        picture=picture,
        tip=tip,
        length_panel=length_panel,
        config=config,
        headline=headline(previews),
        tone=tone(previews),
        roles={segment.role.key for p in previews for example in p.examples for segment in example.segments},
        sources=[(preview, figures(preview, of_mixture[preview.settings.name])) for preview in previews],
        shares=of_mixture,
        rejects_shown=REJECTS,
    )
    write_text(path, text)


def headline(previews: list[SourcePreview]) -> str:
    """The preview in one sentence."""
    distilled = sum(preview.judge.distilled for preview in previews)
    read = sum(preview.read for preview in previews)
    rejected = sum(len(preview.rejects) for preview in previews)
    cut = sum(preview.truncated for preview in previews)
    sources = "1 source" if len(previews) == 1 else f"{len(previews)} sources"
    return f"{sources}, {distilled} distilled: of {read:,} rows read {rejected:,} are rejected and {cut:,} truncated"


def tone(previews: list[SourcePreview]) -> str:
    """Name of the color beside the headline."""
    if any(preview.stops_the_build for preview in previews):
        return "bad"
    return "mixed" if any(preview.rejects for preview in previews) else "good"


def picture(encoded: bytes) -> tuple[str, str]:
    """A row's image for the page: a small `data:` address, and its size in words."""
    return data_uri(thumbnail(encoded)), "{} × {}".format(*image_size(encoded))


def tip(piece: Piece, role: Role) -> str:
    """What a token tells on hover: id, name, role and weights."""
    many = f" ({piece.count} times)" if piece.count > 1 else ""
    parts = [f"id {piece.id}{many}", piece.name, role.learned or "not learned"]
    return " · ".join([*parts, *([f"teacher: {role.teacher}"] if role.teacher else [])])


def figures(preview: SourcePreview, share: Share | None) -> dict[str, str]:
    """What the tiles of a source show, by caption."""
    judge, lengths = preview.judge, preview.lengths
    shown = {
        "rows accepted" if preview.complete else "rows accepted, of a part": f"{len(lengths):,} of {preview.read:,}",
        "rejected": f"{len(preview.rejects):,}",
        "truncated": f"{preview.truncated:,}",
        "of the mixture": words.share_words(share),
        "CE and KD weight" if judge.distilled else "CE weight, no KD": words.weights_words(preview),
    }
    if not lengths:
        return shown
    tokens = np.array([length.tokens for length in lengths])
    supervised = sum(length.supervised for length in lengths)
    return shown | {
        f"tokens a row; median {np.median(tokens):,.0f}, longest {tokens.max():,}": f"{tokens.mean():,.0f}",
        "of the tokens are to be predicted": f"{supervised / tokens.sum():.0%}",
        "images a row": f"{np.mean([length.images for length in lengths]):.2g}",
    }


def length_panel(preview: SourcePreview) -> Markup:
    """A histogram of the rows' tokens as an element for the page."""
    longest = preview.judge.config.corpus.max_length
    draw = partial(_draw, preview.lengths, longest)
    return svgs([Panel(f"Tokens of the rows of {preview.settings.name}", SIZE, draw)])[0]


def _draw(lengths: list[Length], max_length: int, axis: Axes) -> None:
    """Rows by whole length, each bar divided as their tokens are; longer ones than twice `max_length` in the last."""
    end = max(min(max(length.whole for length in lengths), 2 * max_length), 1)
    whole = np.array([min(length.whole, end) for length in lengths])
    predicted = np.array([length.supervised / length.tokens for length in lengths])
    edges = np.linspace(0, end + 1, min(BINS, end + 1) + 1)
    rows, _ = np.histogram(whole, edges)
    supervised, _ = np.histogram(whole, edges, weights=predicted)
    middle, width = (edges[:-1] + edges[1:]) / 2, 0.9 * np.diff(edges)
    axis.bar(middle, supervised, width, color=SUPERVISED, label="to be predicted", hatch="///", edgecolor="white")
    axis.bar(middle, rows - supervised, width, bottom=supervised, color=PROMPT, alpha=0.6, label="prompt")
    if end >= max_length:
        axis.axvline(max_length, linestyle="--", linewidth=1.4, label="corpus.max_length")
    axis.set(xlabel="tokens of a row", ylabel="rows", xlim=(0, None))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, fontsize=8.5)
