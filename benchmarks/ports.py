"""Ports of 127.0.0.1 for servers that benchmarks and tests start."""

from __future__ import annotations

import os
import socket

FIRST, LAST = 20000, 32767
"""The range is above the ports that Ray gives its workers, and below those that the system gives to outgoing
connections, which could take a port before the server does.
"""

_given: set[int] = set()


def free_port() -> int:
    """A free port."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Consecutive free ports, never given twice in a process; processes begin at different ports."""
    size = LAST + 1 - FIRST
    for step in range(size):
        first = FIRST + (os.getpid() * 64 + step) % size
        ports = range(first, first + count)
        if ports[-1] <= LAST and not _given.intersection(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return list(ports)
    raise AssertionError(f"no {count} ports in a row are free between {FIRST} and {LAST}")


def _is_free(port: int) -> bool:
    """Whether no server and no open connection uses a port, on any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
