"""The teacher: the original text-only LM, frozen."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest, continue_from_kv
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.grouped_attention import use_grouped_attention
from lingu_ray.distill.head import OutputHead, output_head
from lingu_ray.errors import UserError


class Teacher:
    """A frozen causal LM that answers requests with hidden states."""

    def __init__(self, model: PreTrainedModel):
        use_exact_attention(model)
        use_grouped_attention(model)
        self.model = model.eval().requires_grad_(False)
        self.decoder = model.get_decoder()

    @classmethod
    def load(cls, settings: TeacherConfig, dtype: torch.dtype, device: torch.device) -> Teacher:
        """Load it from folder or hub. Raises UserError when there is no causal LM there."""
        kwargs = {"gguf_file": settings.gguf_file} if settings.gguf_file else {"use_safetensors": True}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                settings.path, revision=settings.revision, dtype=dtype, attn_implementation="sdpa", **kwargs
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"teacher.path={settings.path}: cannot be loaded as a causal LM. {error}") from error
        return cls(model.to(device))

    @property
    def output_head(self) -> OutputHead:
        """How its final hidden states become logits; it has no gradient."""
        return output_head(self.model)

    def answer(self, request: TeacherRequest) -> Tensor:
        """`hidden_MD` of the queries that predict a supervised token (see `continue_from_kv`)."""
        return continue_from_kv(self.decoder, request)
