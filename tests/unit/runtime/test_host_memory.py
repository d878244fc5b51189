"""The memory that processes may use: the machine's, or less where a control group sets a limit."""

import os
from pathlib import Path

import pytest

from lingu_ray.atomic import write_text
from lingu_ray.runtime.cluster.linux import host_memory

OWN, ABOVE = 2**30, 2**29
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": f"{OWN}"}, OWN),  # a container
        ({"sys/fs/cgroup/memory.max": "max"}, None),
        ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.max": f"{OWN}"}, OWN),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max",
                "sys/fs/cgroup/job/memory.max": f"{ABOVE}",
            },
            ABOVE,
        ),
        ({f"{V1}/memory.limit_in_bytes": f"{OWN}"}, OWN),
        ({f"{V1}/memory.limit_in_bytes": "9223372036854771712"}, None),  # none is set
        (
            {"proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/job\n0::/\n", f"{V1}/job/memory.limit_in_bytes": f"{OWN}"},
            OWN,
        ),
    ],
    ids=str,
)
def test_it_is_within_the_limits(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    """Of this process's group and of those above it, in both versions of control groups."""
    for name, text in files.items():
        write_text(tmp_path / name, text)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory(tmp_path) == (limit or physical)
    assert 0 < host_memory() <= physical
