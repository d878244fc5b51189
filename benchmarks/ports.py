"""Ports of 127.0.0.1 for servers that benchmarks and tests start."""

from __future__ import annotations

import os
import socket

FIRST, LAST = 20000, 32767
"""Above the ports that Ray gives its workers, and below those that the system gives to outgoing connections.

A port of those may be any connection's own by the time that the server asks for it.
"""

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody has."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody has, never the same again in this process; each process begins elsewhere."""
    size = LAST + 1 - FIRST
    for step in range(size):
        first = FIRST + (os.getpid() * 64 + step) % size
        ports = range(first, first + count)
        if ports[-1] <= LAST and not _given.intersection(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return list(ports)
    raise AssertionError(f"no {count} ports in a row are free between {FIRST} and {LAST}")


def _is_free(port: int) -> bool:
    """No server and no living connection has it, on any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
