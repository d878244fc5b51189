"""Servers of tests get ports that nothing else takes before they start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks import ports


def test_a_port_is_not_of_those_for_outgoing_connections():
    """Any connection may be given one of those between a test's look and its server's start."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    if lowest < ports.LAST:
        pytest.skip("outgoing connections have all ports of this machine")
    assert max(ports.free_ports(16)) < lowest


def test_a_port_that_is_held_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    """By a server, or by a client at its end of a connection; and a port is given once."""
    monkeypatch.setattr(ports, "_given", set())
    first, second, third = ports.free_ports(3)
    with socket.create_server(("127.0.0.1", first)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", second))
        client.connect(server.getsockname())
        monkeypatch.setattr(ports, "_given", set())
        assert ports.free_port() == third
        assert ports.free_port() != third
