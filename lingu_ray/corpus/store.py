"""The corpus on disk.

    <folder>/
      manifest.json               settings' fingerprint and counts by source
      shard-00000.parquet, …      rows in position order, `rows_per_shard` each (the last may have fewer)
      validation.parquet          rows held out, by source
      rejected/rejected.parquet   bad rows: source, reason, origin, excerpt

Position p is row p % rows_per_shard of shard p // rows_per_shard: no index is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.corpus.row import Row
from lingu_ray.errors import UserError

ROW_GROUP = 64  # rows read together
CACHED_GROUPS = 8

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("supervised", pa.bool_())]))
ROW_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("messages", MESSAGES),
        ("images", pa.list_(pa.large_binary())),
        ("distill", pa.bool_()),
    ]
)


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.parquet"


def write_rows(table: pa.Table, path: Path) -> None:
    """Write rows of `ROW_SCHEMA` to a parquet file that `Corpus` can read in parts."""
    pq.write_table(
        table.select(ROW_SCHEMA.names).cast(ROW_SCHEMA),
        path,
        row_group_size=ROW_GROUP,
        compression="zstd",
        use_dictionary=False,  # texts and images hardly repeat
    )


class Corpus:
    """A built corpus, opened from its folder. Threads may share it.

    Raises:
        UserError: the folder has no complete corpus, or (on reading) a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{folder} holds no corpus: manifest.json cannot be read ({error})") from error
        self._rows_per_shard: int = self.manifest["rows_per_shard"]
        for shard in range(-(-len(self) // self._rows_per_shard)):
            if not (folder / shard_name(shard)).is_file():
                raise UserError(
                    f"corpus {folder}: {shard_name(shard)} is missing; delete the folder, and it is built again"
                )
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self.manifest["rows"]

    def positions(self, step: int, rows_per_step: int) -> list[int]:
        """Positions that an optimizer step reads; past the end begins a new pass."""
        return [position % len(self) for position in range(step * rows_per_step, (step + 1) * rows_per_step)]

    def rows(self, positions: Sequence[int]) -> list[Row]:
        """Rows at the given positions (0 ≤ position < len), in the given order.

        Raises:
            IndexError: a position lies outside the corpus.
        """
        return [self._row(position) for position in positions]

    def validation(self) -> dict[str, list[Row]]:
        """Held-out rows by source, in a fixed order."""
        held_out: dict[str, list[Row]] = {name: [] for name in self.manifest["sources"]}
        for record in pq.read_table(self.folder / "validation.parquet").to_pylist():
            held_out[record["source"]].append(row_of(record))
        return held_out

    def _row(self, position: int) -> Row:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside the corpus of {len(self)} rows")
        shard, row = divmod(position, self._rows_per_shard)
        group, row = divmod(row, ROW_GROUP)
        return row_of(self._group(shard, group).slice(row, 1).to_pylist()[0])

    def _read_group(self, shard: int, group: int) -> pa.Table:
        path = self.folder / shard_name(shard)
        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged; delete the corpus' folder, and it is built again: {error}") from error


def row_of(record: dict[str, Any]) -> Row:
    """A row as it was written: Arrow has null for keys that a message lacks."""
    messages = [{key: value for key, value in message.items() if value is not None} for message in record["messages"]]
    return Row(**record | {"messages": messages})
