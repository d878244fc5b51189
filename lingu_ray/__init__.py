"""lingu_ray gives a vision-language model its language back."""

from lingu_ray.starting import end_without_traceback

end_without_traceback()  # before all other imports

import logging  # noqa: E402
import os  # noqa: E402
from importlib.metadata import PackageNotFoundError, version  # noqa: E402

try:
    __version__ = version("lingu-ray")
except PackageNotFoundError:  # code that travels with a Ray job is not installed on the nodes
    __version__ = "unknown"

# Worker and teacher share the cores of a CPU node. OpenMP threads that spin while they wait take them from each other:
# measured, a forward pass beside another process is up to 18 times slower so. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# To show or save a configuration of Idefics3 or SmolVLM, Transformers makes one of its class's defaults, whose padding
# token lies beyond their vocabulary, and warns of that, whatever the model's own says.
_OF_DEFAULTS = "pad_token_id must be `None` or an integer within the vocabulary (between 0 and 31999), got 128002"
logging.getLogger("transformers.configuration_utils").addFilter(lambda record: _OF_DEFAULTS not in record.getMessage())
