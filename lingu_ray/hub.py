"""The Hugging Face hub: whether it can be reached, and what its libraries raise where it does not give something."""

from __future__ import annotations

import logging
import os
import socket
import time
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

from lingu_ray.errors import first_line

HUB_ERRORS = (OSError, ValueError, HTTPError)
"""Of what is not there, may not be read, or is not in the cache of a machine that is offline; the last: a connection
that broke, again and again."""

_TRIES = 2
_CONNECT_S = 10.0  # as long as the hub's own libraries wait
_PORTS = {"http": 80, "https": 443}

log = logging.getLogger(__name__)


@cache
def reach() -> str:
    """Why the hub is not asked, empty where it is. One that cannot be reached is not, from here on and in processes
    that this one starts, as with HF_HUB_OFFLINE=1: its libraries would try each file for up to minutes, in silence."""
    if constants.HF_HUB_OFFLINE:
        return "is not asked (HF_HUB_OFFLINE=1)"
    try:
        _connect(constants.ENDPOINT)
    except OSError as error:
        why = f"{constants.ENDPOINT}: {first_line(error) or f'no connection within {_CONNECT_S:.0f} s'}"
        log.warning("the Hugging Face hub cannot be reached (%s): only what is in its cache is taken", why)
        constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
        return f"cannot be reached ({why})"
    return ""


def why_not_had(error: Exception) -> str:
    """What one of `HUB_ERRORS` says, in a line; where the hub is not asked, why, and the cure."""
    if not isinstance(error, OSError) or not (why := reach()):
        return first_line(error)
    return (
        f"it {why}, and its cache {constants.HF_HOME} does not have it; give a local folder, a mirror "
        "(HF_ENDPOINT=https://…), or a cache that has it (HF_HOME)"
    )


def _connect(endpoint: str) -> None:
    """Open and close a connection to the hub, or to the proxy before it. Raises OSError, TimeoutError among them."""
    address = urlsplit(endpoint)
    host, proxies = address.hostname or "", getproxies()
    if not proxy_bypass(host):
        address = urlsplit(proxies.get(address.scheme) or proxies.get("all") or endpoint)
    port = address.port or _PORTS.get(address.scheme, 1080)
    for again in reversed(range(_TRIES)):
        try:
            return socket.create_connection((address.hostname, port), _CONNECT_S).close()
        except OSError:
            if not again:
                raise
        time.sleep(1)
