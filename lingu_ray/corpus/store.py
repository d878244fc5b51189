"""The corpus on disk, or in a bucket, from which each node copies a file when it first reads it.

    <folder>/
      manifest.json               settings' fingerprint, counts by source; written last
      bytes.json                  bytes of each parquet file in the folder itself
      shard-00000.parquet, …      rows in position order, `rows_per_shard` each (the last may have fewer)
      validation.parquet          rows held out, by source
      rejected/rejected.parquet   bad rows: source, reason, origin, excerpt

Position p is row p % rows_per_shard of shard p // rows_per_shard: no index is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray import storage
from lingu_ray.atomic import read_json
from lingu_ray.corpus.row import Row
from lingu_ray.errors import UserError

ROW_GROUP = 64  # rows read together
CACHED_GROUPS = 8
CACHED_FILES = 64  # paths of a node's copies
CACHED_FOOTERS = 8  # reading the footer of a large shard takes longer than reading rows
MANIFEST, SIZES, VALIDATION_FILE = "manifest.json", "bytes.json", "validation.parquet"
VERSION = 22  # of what a build writes; with a new version every corpus is built again
EARLIER_VERSIONS = tuple(range(VERSION - 1, 3, -1))  # still read: a run that began with such a corpus keeps it
_BUILT_AGAIN = "delete the corpus, and it is built again"

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
        write_statistics=False,  # they would put two images of each group into the footer
    )


def is_built(folder: Path | str) -> bool:
    """Whether a folder, or a location in a bucket, holds a corpus. Raises UserError if storage fails."""
    return folder.is_dir() if isinstance(folder, Path) else storage.is_file(storage.join(folder, MANIFEST))


@contextmanager
def writing(folder: Path | str, name: str) -> Iterator[Path]:
    """Yield a path to write a file of a corpus to; for a bucket, it is uploaded when the block ends without error."""
    if isinstance(folder, Path):
        (folder / name).parent.mkdir(exist_ok=True)
        yield folder / name
        return
    with TemporaryDirectory() as scratch:
        path = Path(scratch, Path(name).name)
        yield path
        storage.put(path, storage.join(folder, name))


def corpus_file(folder: Path | str, name: str) -> Path:
    """A file of a corpus on this node's disk; for a bucket the node's copy (errors as `storage.fetch`)."""
    return folder / name if isinstance(folder, Path) else storage.fetch(storage.join(folder, name))


def existing_file(folder: Path | str, name: str) -> Path | None:
    """`corpus_file`, or None if the corpus was deleted or storage fails."""
    try:
        file = corpus_file(folder, name)
    except UserError:
        return None
    return file if file.exists() else None


class Corpus:
    """A built corpus, opened from its folder or location in a bucket. Threads may share it.

    Its memory does not grow with the number of rows: it opens files only to read rows.

    Raises:
        UserError: the folder has no complete corpus, one of a later version, or (on reading) a damaged one.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = self._read_json(self.manifest_file, "rows", "rows_per_shard", "sources")
        except OSError as error:
            raise UserError(f"{folder} holds no corpus: {MANIFEST} cannot be read ({error}); {_BUILT_AGAIN}") from error
        if (version := self.manifest.get("version", min(EARLIER_VERSIONS))) > VERSION:
            raise UserError(
                f"{folder} is a corpus of version {version}, and this lingu_ray reads up to {VERSION}: upgrade"
            )
        self._rows_per_shard: int = self.manifest["rows_per_shard"]
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)
        self._footer = lru_cache(CACHED_FOOTERS)(pq.read_metadata)
        self._file = lru_cache(CACHED_FILES)(partial(corpus_file, folder))

    @property
    def manifest_file(self) -> Path:
        """Path of the manifest on this node."""
        return corpus_file(self.folder, MANIFEST)

    def check_files(self) -> None:
        """Check by one listing that every file exists with its size. Raises UserError."""
        sizes = existing_file(self.folder, SIZES)
        written = self.manifest.get("bytes", {}) if sizes is None else self._read_json(sizes)  # before version 5
        found = _sizes(self.folder)
        shards = range(-(-len(self) // self._rows_per_shard))
        for name in chain([VALIDATION_FILE], map(shard_name, shards)):
            if name not in found or found[name] != written.get(name, found[name]):
                problem = "is damaged" if name in found else "is missing"
                raise UserError(f"corpus {self.folder}: {name} {problem}; {_BUILT_AGAIN}")

    def __len__(self) -> int:
        return self.manifest["rows"]

    def positions(self, step: int, rows_per_step: int) -> list[int]:
        """The positions that an optimizer step reads; past the end a new pass begins."""
        return [position % len(self) for position in range(step * rows_per_step, (step + 1) * rows_per_step)]

    def rows(self, positions: Sequence[int]) -> list[Row]:
        """Rows at the given positions, in the given order (errors as `row`)."""
        return [self.row(position) for position in positions]

    def row(self, position: int) -> Row:
        """The row at a position (0 ≤ position < len).

        Raises:
            IndexError: the position lies outside the corpus.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside the corpus of {len(self)} rows")
        shard, row = divmod(position, self._rows_per_shard)
        group, row = divmod(row, ROW_GROUP)
        return row_of(self._group(shard, group).slice(row, 1).to_pylist()[0])

    def validation(self) -> dict[str, list[Row]]:
        """Held-out rows by source, in a fixed order."""
        held_out: dict[str, list[Row]] = {name: [] for name in self.manifest["sources"]}
        path = self._file(VALIDATION_FILE)
        with self._read(path):
            table = pq.read_table(path)
        for record in table.to_pylist():
            held_out[record["source"]].append(row_of(record))
        return held_out

    def _read_group(self, shard: int, group: int) -> pa.Table:
        path = self._file(shard_name(shard))
        with self._read(path), pq.ParquetFile(path, metadata=self._footer(path)) as file:
            return file.read_row_group(group)

    def _read_json(self, path: Path, *keys: str) -> dict[str, Any]:
        return read_json(path, *keys, cure=f"{_BUILT_AGAIN} ({self.folder})")

    @contextmanager
    def _read(self, path: Path) -> Iterator[None]:
        """Turn the errors of a damaged file, raised in the block, into a UserError."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"corpus {self.folder}: {path.name} is damaged; {_BUILT_AGAIN}: {error}") from error


def _sizes(folder: Path | str) -> dict[str, int]:
    """Bytes of each parquet file in the folder itself, by name."""
    if isinstance(folder, Path):
        return {path.name: path.stat().st_size for path in folder.glob("*.parquet")}
    return {entry.name: entry.size for entry in storage.entries(folder)}


def row_of(record: dict[str, Any]) -> Row:
    """The row of a record; leaves out Arrow's nulls for keys that a message does not have."""
    messages = [{key: value for key, value in message.items() if value is not None} for message in record["messages"]]
    return Row(**record | {"messages": messages})
