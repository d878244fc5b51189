"""The finished model, as Transformers and vLLM load it: the student's own class, not one parameter more."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin


def export_model(model: PreTrainedModel, processor: ProcessorMixin, dtype: torch.dtype, folder: Path) -> None:
    """Write safetensors, configuration, generation settings and processor to `folder`, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    nn.Module.to(model, dtype)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
