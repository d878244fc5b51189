"""File systems of pyarrow, one for each bucket, and what is tried again, with a new one, where they fail."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import getproxies, proxy_bypass

from lingu_ray.errors import UserError
from lingu_ray.storage.locations import bucket_and_key, redacted

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")

WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each further attempt where storage does not answer
TIMEOUT_S = 10  # of a connection or request
CHANGED = "another version is there now"
"""The error of a read that finds an object replaced."""


class Replaced(UserError):
    """An object was replaced while it was read."""


def tried(location: str, action: Callable[[FileSystem, str], T]) -> T:
    """The result of an action on a location, tried again with a new file system where it fails."""
    from pyarrow.lib import ArrowException  # slow to import: only where there is a location

    path, attempts = bucket_and_key(location), 0
    while True:
        try:
            return action(file_system(location.partition("://")[0], path.partition("/")[0]), path)
        except FileNotFoundError:
            raise
        except (OSError, ArrowException) as error:
            file_system.cache_clear()
            failure = _failure(str(error))
            if attempts >= len(failure.waits):  # of this failure, which may be another than the one before
                raise failure.kind(f"{location}: {failure.message} ({redacted(str(error))})") from error
            time.sleep(failure.waits[attempts])
            attempts += 1


@lru_cache
def file_system(scheme: str, bucket: str) -> FileSystem:
    """A bucket's file system; credentials, region, endpoint and proxy as AWS's tools find them; kept until it fails."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, GcsFileSystem, S3FileSystem, resolve_s3_region

    if scheme == "gs":
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        options = _endpoint(emulator) | {"anonymous": True} if emulator else {}
        return GcsFileSystem(retry_time_limit=timedelta(seconds=TIMEOUT_S), **options)
    options = _endpoint(_s3_server())
    options |= _proxy(**options)
    if not (options or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options = {"region": resolve_s3_region(bucket)}  # which knows no proxy
    retries = AwsStandardS3RetryStrategy(max_attempts=2)
    return S3FileSystem(request_timeout=TIMEOUT_S, connect_timeout=TIMEOUT_S, retry_strategy=retries, **options)


def _s3_server() -> str | None:
    """The address of a server of one's own, where boto3 finds it: pyarrow looks nowhere, and would ask Amazon's.

    Raises:
        UserError: AWS's configuration cannot be read.
    """
    if given := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return given
    configured = ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    for variable, usual in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        file = os.path.expanduser(os.environ.get(variable) or f"~/.aws/{usual}")
        try:
            configured.read(file, encoding="utf-8")
        except (OSError, ValueError, ConfigError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
    name = os.environ.get("AWS_PROFILE") or "default"

    def value(key: str) -> str:
        sections = (name, f"profile {name}")  # as the file of credentials and that of settings call it
        return next(filter(None, (configured.get(section, key, fallback=None) for section in sections)), "")

    of_services = configured.get(f"services {value('services')}", "s3", fallback=None) or ""
    of_s3 = re.search(r"^endpoint_url\s*=\s*(\S+)", of_services, re.MULTILINE)
    return of_s3[1] if of_s3 else value("endpoint_url") or None


def _endpoint(url: str | None) -> dict[str, Any]:
    """The address of a server of one's own, as arguments of a file system."""
    if not url:
        return {}
    scheme, _, host = url.rpartition("://")
    return {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}


def _proxy(scheme: str = "https", endpoint_override: str = "s3.amazonaws.com") -> dict[str, Any]:
    """The proxy that the environment names for an S3 server, as an argument; pyarrow asks GCS by it, and S3 past it."""
    proxy = getproxies().get(scheme)
    return {"proxy_options": proxy} if proxy and not proxy_bypass(endpoint_override) else {}


@dataclass(frozen=True)
class _Failure:
    """What errors that hold one of the `signs` mean, and the seconds before each further attempt."""

    signs: tuple[str, ...]
    waits: tuple[float, ...]
    message: str
    kind: type[UserError] = UserError


def _failure(error: str) -> _Failure:
    """What the text of an error means; names that the AWS SDK does not know are in it as the server wrote them."""
    kinds = (
        _Failure(("NO_SUCH_BUCKET", "Bucket '"), (), "there is no such bucket; correct the location"),
        _Failure(
            ("StorageFull", "QuotaExceeded", "status 507"), (), "it has no room left; free some, or have it enlarged"
        ),
        _Failure(
            ("SLOW_DOWN", "SlowDown", "status 503"),
            tuple(4 * wait for wait in WAITS_S),  # what is asked too often is not to be asked soon
            "it takes no more requests for now; start again later, or with fewer workers",
        ),
        _Failure((CHANGED,), (0.0,) * len(WAITS_S), "it changed while it was read; start again", Replaced),
        _Failure(("TIME_TOO_SKEWED",), (), "this machine's clock is wrong; set it"),
        _Failure(
            ("status 301", "AuthorizationHeaderMalformed"),
            (),
            "the bucket is in another region, or of another server; correct AWS_REGION and AWS_ENDPOINT_URL",
        ),
        _Failure(
            (
                *("ACCESS_DENIED", "EXPIRED", "SIGNATURE", "ACCESS_KEY_ID", "UNAUTHENTICATED", "PERMISSION_DENIED"),
                *("OAuth2", "ExpiredToken", "InvalidToken", "status 401", "status 403"),
            ),
            (0.0,),  # once more, with credentials read again
            "access is refused; give every node credentials that may use it, by the environment or the cloud's roles",
        ),
        _Failure(
            ("status 400) during HeadObject",),  # whose answer has no reason in it
            WAITS_S,
            "storage refuses to answer; see that the credentials have not expired, and are of this region and endpoint",
        ),
        _Failure(("",), WAITS_S, "storage does not answer; check network and endpoint, then start again"),
    )
    return next(kind for kind in kinds if any(sign in error for sign in kind.signs))
