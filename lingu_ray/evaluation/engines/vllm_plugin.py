"""What vLLM needs to import its models where torchvision is missing: vLLM finds it as an entry point.

vLLM's LLaVA imports its Pixtral, which imports one function of Transformers' Pixtral image processor on torchvision.
The one on PIL has the same function.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

_PIXTRAL = "transformers.models.pixtral.image_processing_pixtral"
_PIXTRAL_PIL = "transformers.models.pixtral.image_processing_pil_pixtral"


def register() -> None:
    """Replace the image processor that cannot be imported by the one on PIL; may be called more than once."""
    if find_spec("torchvision") is None:
        sys.modules.setdefault(_PIXTRAL, importlib.import_module(_PIXTRAL_PIL))
