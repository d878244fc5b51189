"""Object storage: what is at `s3://bucket/key` and `gs://bucket/key`, by few verbs over `pyarrow.fs`.

A bucket has no folders, no rename and no append. So whoever writes works in a local folder and puts whole objects, with
the one that says "complete" (the marker) last; whoever reads streams an object, or takes a copy from the node's cache,
which is fetched once, under a lock. Local paths stay with `pathlib`; only `open_file`, `is_file` and `check_writable`
take both.

Results at a location are written in a working folder of the node's cache that stands for it (`working_folder`,
`origin`): `CACHE/driver/@s3/bucket/runs/mine` for `s3://bucket/runs/mine`.

Credentials, region and endpoint come from where each cloud's own tools find them (`AWS_…`, `~/.aws`, roles of machines
and pods; `GOOGLE_APPLICATION_CREDENTIALS`), never from a location. What the network loses is tried again, with a new
connection and fresh credentials; what cannot be had is a `UserError` that names the location and the cure.
"""

from lingu_ray.storage.connection import WAITS_S
from lingu_ray.storage.locations import (
    SCHEMES,
    below,
    is_remote,
    join,
    not_local,
    parent,
    place,
    redacted,
    refusal,
    scheme_of,
)
from lingu_ray.storage.node_cache import CACHE, cache_folder, fetch, fetch_tree, get_tree, local_copy, made_cache_folder
from lingu_ray.storage.objects import (
    check_writable,
    delete,
    entries,
    exists,
    is_file,
    open_file,
    put,
    put_tree,
    read_bytes,
    version,
)
from lingu_ray.storage.working_folders import origin, remove, working_folder

__all__ = [
    "CACHE",
    "SCHEMES",
    "WAITS_S",
    "below",
    "cache_folder",
    "check_writable",
    "delete",
    "entries",
    "exists",
    "fetch",
    "fetch_tree",
    "get_tree",
    "is_file",
    "is_remote",
    "join",
    "local_copy",
    "made_cache_folder",
    "not_local",
    "open_file",
    "origin",
    "parent",
    "place",
    "put",
    "put_tree",
    "read_bytes",
    "redacted",
    "refusal",
    "remove",
    "scheme_of",
    "version",
    "working_folder",
]
