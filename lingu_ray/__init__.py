"""lingu_ray gives a vision-language model its language back."""

import os
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lingu-ray")
except PackageNotFoundError:  # code that travels with a Ray job is not installed on the nodes
    __version__ = "unknown"

# Worker and teacher share the cores of a CPU node. OpenMP threads that spin while they wait take them from each other:
# measured, a forward pass beside another process is up to 18 times slower so. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
