"""The student VLM: its forward pass with KV capture, its parameter groups and its output head."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from lingu_ray.distill.capture import KVCapture, capturing, donate, uses_flash
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.donation import Donation
from lingu_ray.distill.head import OutputHead, check_head, output_head
from lingu_ray.distill.inputs import (
    ModelInputs,
    check_image_tokens,
    forward_arguments,
    send_arguments,
    unequal_images,
)
from lingu_ray.distill.sequences import of_sequences, sequence_arguments, take_sequences
from lingu_ray.errors import UserError

_OF_IMAGE_TOKENS = re.compile(r"(image|audio|<image>) tokens")
"""In what classes of Transformers raise where image tokens and features differ in number."""


class Student:
    """An image-text-to-text model, with the parts that the method needs by name. The model is changed: it donates KV.

    Raises UserError for an output head, an attention or other parts that the method cannot use.
    """

    def __init__(self, model: PreTrainedModel):
        if not isinstance(getattr(model, "model", None), nn.Module):
            raise UserError(f"a {type(model).__name__} is built otherwise: its body is no part of it, `model`")
        if "input_ids" not in inspect.signature(model.model.forward).parameters:
            raise UserError(
                f"student: `model` of {type(model).__name__} is wrapped or compiled, so that it does not say what it "
                "takes: compile it in place (student.model.compile()), shard it in place (fully_shard)"
            )
        self.model = model
        self.decoder = model.get_decoder()
        self.body = cast(nn.Module, model.model)  # the forward pass without the head
        if all(module is not self.tower for module in self.body.modules()):
            raise UserError(f"a {type(model).__name__} is built otherwise: its tower is no part of its body, `model`")
        check_head(model)
        self.head = cast(nn.Module, model.get_output_embeddings())
        use_exact_attention(self.decoder)
        donate(self.decoder)
        if uses_flash(self.decoder):
            take_sequences(self.decoder)

    @property
    def output_head(self) -> OutputHead:
        """How final hidden states become logits; gradients reach its weight."""
        return output_head(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return cast(nn.ModuleList, self.decoder.layers)

    @property
    def tower(self) -> nn.Module:
        """The vision tower, which in Qwen's holds the projector, too; of an audio model that for audio."""
        modality = "image" if hasattr(self.model.config, "vision_config") else "audio"
        return cast(nn.Module, self.model.get_encoder(modality=modality))

    def hidden_states(self, inputs: ModelInputs, donation: Donation | None = None) -> tuple[Tensor, KVCapture | None]:
        """Final hidden states `[B, T, D]` and, with a donation, what was captured for it, detached.

        `inputs` are on the CPU; they are sent to the model's device. Raises UserError where a layer does not donate.
        The statistics of a convolutional tower (FastVLM's) stay those of its files, also in training.
        """
        if self._has_statistics:
            self._keep_statistics()
        arguments = forward_arguments(self.body, inputs)
        capture = flat_C = None
        if donation is not None:
            flat_C = donation.donated_row_C * inputs.input_ids_BT.shape[1] + donation.donated_column_C
        sequences = sequence_arguments(inputs.sample_BT) if uses_flash(self.decoder) else {}
        sent = send_arguments({**arguments, **sequences, "flat_C": flat_C}, self.model.device)
        of_decoder = {name: sent.pop(name) for name in sequences}
        if (flat_C := sent.pop("flat_C")) is not None:
            capture = KVCapture(self.decoder.config.num_hidden_layers, flat_C, arguments.get("position_ids"))
        with capturing(capture), of_sequences(of_decoder):
            output = self._run(inputs, sent)
        if capture is not None:
            capture.check_complete()
        features = output.get("image_hidden_states") if hasattr(self.body, "inputs_merger") else None
        if features is not None:  # Idefics3 and SmolVLM, which count themselves where their output has it no more
            images = getattr(features, "pooler_output", features)
            check_image_tokens(inputs, sum(image.shape[:-1].numel() for image in images))
        return output.last_hidden_state, capture

    def _run(self, inputs: ModelInputs, arguments: dict[str, Any]) -> Any:
        """The body's output. Raises UserError where it finds other image tokens than it has images for."""
        try:
            return self.body(**arguments, use_cache=False, return_dict=True)
        except ValueError as error:
            if _OF_IMAGE_TOKENS.search(str(error)) is None:
                raise
            raise unequal_images(inputs, f"the images do not fit them ({str(error).rstrip('.')})") from error

    @cached_property
    def _has_statistics(self) -> bool:
        """Whether the model has batch norm, synchronized or not; most have none to be looked for in every pass."""
        return any(isinstance(module, _BatchNorm) for module in self.model.modules())

    def _keep_statistics(self) -> None:
        """Keep batch norm from collecting statistics, whoever has set the model to training.

        While it does, an image's features depend on the others of its pass, and workers drift apart.
        """
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters by group: `decoder` (with embeddings and head), `vision` tower, `projector` (the rest).

        Qwen's towers hold their projector, the merger, which counts as such. An audio tower counts as `vision`, and so
        do others beside the tower: DeepSeek-VL's for high resolution, Video-LLaVA's, Omni's.
        """
        decoder = {id(p) for p in [*self.decoder.parameters(), *self.head.parameters()]}
        models = [module for module in self.body.children() if isinstance(module, PreTrainedModel)]
        towers = [self.tower, *(model for model in models if self.decoder not in model.modules())]
        tower = {id(p) for one in towers for name, p in one.named_parameters() if "merger" not in name}
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vision": [], "projector": [], "decoder": []}
        for name, parameter in self.model.named_parameters():
            group = "decoder" if id(parameter) in decoder else "vision" if id(parameter) in tower else "projector"
            groups[group].append((name, parameter))
        return groups
