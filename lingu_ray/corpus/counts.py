"""Counts of a build's good and bad rows; a source with too many bad rows is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.config.numbers import share_of
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError

MUCH_HELD_OUT = 0.2  # share of a source's rows above which the summary mentions it
FIRST = ["key", "origin", "excerpt"]  # columns of a tally about its first row


def tally(block: pa.Table) -> pa.Table:
    """Count the rows of a block by source, file split and reason (null: good), and keep the first row of each."""
    rows = block.select(["source", "reason", "key", "origin", "excerpt"])
    rows = rows.append_column("split", pa.array(rows["key"].to_numpy() >> 32))
    rows = rows.append_column("rows", pa.repeat(1, len(rows)))
    return merged(rows.append_column("truncated", pc.cast(pc.fill_null(block["truncated"], False), pa.int64())))


def merged(tallies: pa.Table) -> pa.Table:
    """Merge the tallies of several blocks, in the order of the files."""
    groups = tallies.sort_by("key").group_by(["source", "split", "reason"], use_threads=False)
    sums = groups.aggregate([("rows", "sum"), ("truncated", "sum"), *((name, "first") for name in FIRST)])
    names = {"rows_sum": "rows", "truncated_sum": "truncated"} | {f"{name}_first": name for name in FIRST}
    return sums.rename_columns([names.get(name, name) for name in sums.column_names]).sort_by("key")


def good_rows(tallies: pa.Table, sources: tuple[SourceConfig, ...]) -> dict[str, dict[int, int]]:
    """The number of good rows by source and file split."""
    good: dict[str, dict[int, int]] = {source.name: {} for source in sources}
    for row in tallies.filter(pc.field("reason").is_null()).select(["source", "split", "rows"]).to_pylist():
        good[row["source"]][row["split"]] = row["rows"]
    return good


def checked_counts(
    tallies: pa.Table, corpus: CorpusConfig, sources: tuple[SourceConfig, ...]
) -> dict[str, dict[str, Any]]:
    """Counts by source: read, accepted, truncated, rejected by reason.

    Raises:
        UserError: more than `max_reject_rate` of a source is bad.
    """
    counts = {}
    for source in sources:
        of_source = tallies.filter(pc.field("source") == source.name).to_pylist()
        bad = [row for row in of_source if row["reason"] is not None]
        read = sum(row["rows"] for row in of_source)
        reasons: Counter[str] = Counter()
        for row in bad:
            reasons[row["reason"]] += row["rows"]
        if reasons.total() > share_of(corpus.max_reject_rate, read):
            raise UserError(_too_many_bad(source, read, reasons, bad, corpus.max_reject_rate))
        counts[source.name] = {
            "read": read,
            "accepted": read - reasons.total(),
            "truncated": sum(row["truncated"] for row in of_source),
            "rejected": dict(reasons.most_common()),
        }
    return counts


def where_images_are(source: SourceConfig, details: Iterable[str]) -> str:
    """Where the images of its rows are looked for, in a sentence, if one is not there by the details of its rejects."""
    if not any("No such file" in detail for detail in details):
        return ""
    setting = f"corpus.sources.{source.name}.image_root"
    where = f"{setting}={source.image_root}" if source.image_root else f"the folder of the rows' file ({setting})"
    return f"Images that rows name by relative paths are looked for in {where}. "


def _too_many_bad(
    source: SourceConfig, read: int, reasons: Counter[str], bad: list[dict[str, Any]], limit: float
) -> str:
    firsts = {row["reason"]: row for row in reversed(bad)}
    examples = "".join(
        f"\n  {count} × {reason}, first at {firsts[reason]['origin']}: {firsts[reason]['excerpt']}"
        for reason, count in reasons.most_common()
    )
    return (
        f"source {source.name}: {reasons.total()} of {read} rows ({reasons.total() / read:.1%}) are bad, more than "
        f"corpus.max_reject_rate={limit}:{examples}\n"
        f"{where_images_are(source, (row['excerpt'] for row in bad))}"
        "Fix the data, or raise corpus.max_reject_rate to leave these rows out"
    )


def summary(corpus: Corpus) -> list[str]:
    """Describe the corpus: a line for all of it and one for each source."""
    lines = [f"corpus {corpus.folder}: {len(corpus)} rows"]
    for name, counts in corpus.manifest["sources"].items():
        bad = sum(counts["rejected"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items())
        lines.append(
            f"  {name}: {counts['read']} read, {bad} rejected{f' ({reasons})' if bad else ''}, "
            f"{counts['truncated']} truncated, {counts['validation']} held out for validation, "
            f"{counts['accepted'] - counts['validation']} to train on"
        )
        if counts["validation"] > MUCH_HELD_OUT * counts["accepted"]:
            lines.append(
                f"  {name}: corpus.validation_rows={counts['validation']} holds out {counts['validation']} of its "
                f"{counts['accepted']} rows; lower it to train on more"
            )
    return lines
