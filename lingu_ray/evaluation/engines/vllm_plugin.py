"""What vLLM needs to import its models where torchvision is missing: found by vLLM as an entry point.

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
    """Put the PIL image processor in the place of the one that cannot be imported; may be called more than once."""
    if find_spec("torchvision") is None:
        sys.modules.setdefault(_PIXTRAL, importlib.import_module(_PIXTRAL_PIL))
