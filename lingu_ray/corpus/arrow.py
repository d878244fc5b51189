"""Arrow files, as streams (what `datasets` writes) or in the file format (`.arrow` of other libraries, Feather).

Where this is imported, as by all of the room, columns of pickled objects in any Arrow or parquet file are bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lingu_ray import storage

FILE_FORMAT = b"ARROW1"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream
PICKLED = "ray.data.arrow_pickled_object"


class _Bytes(pa.ExtensionType):
    """Stands for Ray Data's type of pickled objects, whose values would run whatever code is in the file."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, PICKLED)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, _: bytes) -> _Bytes:
        return cls(storage)


with suppress(pa.ArrowKeyError):  # Ray Data is not imported yet; it leaves a type of that name in place
    pa.unregister_extension_type(PICKLED)
pa.register_extension_type(_Bytes(pa.large_binary()))


def random_access(path: str) -> pa.NativeFile | str:
    """What pyarrow reads parts of a file by: the path, or of a remote one an object that asks for these parts alone."""
    return pa.PythonFile(storage.open_file(path, buffering=0), "r") if storage.is_remote(path) else path


@contextmanager
def open_arrow(path: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Schema and record batches of a file, mapped into memory; of a remote one the node's copy.

    A batch of a stream is found by reading all before it, which a task for each batch would fetch again.

    Raises:
        ValueError: a stream has no end, so its writer was interrupted (pyarrow takes what is there for all).
        UserError: storage fails.
    """
    with pa.memory_map(storage.local_copy(path)) as file:
        if file.read(len(FILE_FORMAT)) == FILE_FORMAT:
            reader = pa.ipc.open_file(file)
            yield reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
            return
        file.seek(max(0, file.size() - len(END)))
        if file.read() != END:
            raise ValueError("the stream has no end: it was cut off, or its writer was interrupted")
        file.seek(0)
        with pa.ipc.open_stream(file) as batches:
            yield batches.schema, iter(batches)


def in_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with 64 bits for floats of 32: what was 19.99 is that again, and not 19.989999771118164."""
    for index, field in enumerate(batch.schema):
        if (as_text := _with_floats(field.type, pa.string())) != field.type:
            decimals = pc.cast(pc.cast(batch.column(index), as_text), _with_floats(field.type, pa.float64()))
            batch = batch.set_column(index, field.name, decimals)
    return batch


def _with_floats(type: pa.DataType, new: pa.DataType) -> pa.DataType:
    """A type in which another one stands for floats of 32 bits."""
    if pa.types.is_float32(type):
        return new
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(_with_floats(field.type, new)) for field in type])
    if pa.types.is_map(type):
        return pa.map_(type.key_type, _with_floats(type.item_type, new))
    if pa.types.is_fixed_size_list(type):
        return pa.list_(_with_floats(type.value_type, new), type.list_size)
    if pa.types.is_large_list(type):
        return pa.large_list(_with_floats(type.value_type, new))
    return pa.list_(_with_floats(type.value_type, new)) if pa.types.is_list(type) else type


def json_columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Types of the columns with JSON somewhere inside, as `datasets` stores what differs in kind from row to row."""
    return {field.name: field.type for field in schema if "arrow.json" in str(field.type)}


def unquoted(value: Any, type: pa.DataType) -> Any:
    """A value in which texts stored as JSON are the texts, and entries of a list what they were.

    Else numbers, lists and objects stay JSON text: `datasets` stores the text "4", or "[1, 2]", as it stores what they
    mean, and as answers they are texts.
    """
    if value is None:
        return None
    if isinstance(type, pa.JsonType):
        return json.loads(value) if value.startswith('"') else value
    if pa.types.is_struct(type):
        return {field.name: unquoted(value[field.name], field.type) for field in type}
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        of_json = isinstance(type.value_type, pa.JsonType)
        return [json.loads(item or "null") if of_json else unquoted(item, type.value_type) for item in value]
    return value
