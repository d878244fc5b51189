"""Whether an exported folder is the model that was trained: read back as its users read it, compared, and asked."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel

from lingu_ray.corpus.chat_template import on_one_day
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.distill.generate import generating
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.weights import NOT_LOADABLE, load_whole

log = logging.getLogger(__name__)

QUESTION = "What is this?"
_PICTURE = Image.new("RGB", (64, 48), (200, 100, 50))


def verify_export(
    folder: Path, tensors: dict[str, Tensor], processor: Any, dtype: torch.dtype, trust_remote_code: bool = False
) -> None:
    """Load the folder by Transformers' auto classes on the CPU, compare every weight to the bit, and ask a question.

    The question is about an image, in the folder's own chat template; two tokens are generated. Memory: one copy of the
    model in `dtype`.

    Args:
        folder: what was written.
        tensors: the trained ones in `dtype`, by the names of the model's class.
        processor: the one that the model was trained with.
        dtype: of the export.
        trust_remote_code: whether the model has code of its own, which was trusted.

    Raises:
        UserError: it does not load, a tensor differs, the prompt is not the one of training, or the answer fails.
    """
    try:
        model = load_whole(AutoModelForImageTextToText, "the export", str(folder), trust_remote_code, dtype=dtype)
        compare_weights(model, tensors)
        saved = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        inputs = question(saved, Encoder(processor, 1))
    except NOT_LOADABLE as error:
        raise UserError(f"the export does not load again: {error}") from error
    answer(model, inputs)


def compare_weights(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Raise UserError where the model's tensors are not these, to the bit."""
    found = model.state_dict()
    different = sorted(found.keys() ^ tensors.keys())
    different += [
        name
        for name, tensor in tensors.items()
        if name in found and not _same_bits(found[name].to(tensor.dtype), tensor)
    ]
    if different:
        raise UserError(
            f"the export does not hold the trained model: {len(different)} of {len(tensors)} tensors are missing, left "
            f"over or not the trained ones, such as {', '.join(different[:3])}"
        )


def question(processor: Any, trained_with: Encoder) -> dict[str, Tensor]:
    """The inputs of `generate` for a question about an image, by the processor's own chat template.

    Raises:
        UserError: the template fails, or its prompt has other tokens than the same question has in training. An EOS
            that the tokenizer appends is a warning: training leaves it out.
    """
    file = io.BytesIO()
    _PICTURE.save(file, "PNG")
    asked = [{"role": "user", "content": PLACEHOLDER + QUESTION}]
    try:
        expected_T = trained_with.encode_conversation(asked, [file.getvalue()]).input_ids_T
    except ValueError as error:
        raise UserError(f"the processor cannot encode a question about an image: {error}") from error
    faults = []
    for ask in (_in_parts, _in_text):  # templates take a message's content in one form or the other
        try:
            inputs = ask(processor)
        except Exception as error:  # of any type: templates and processors raise many
            faults.append(f"{type(error).__name__}: {error}")
            continue
        ids_T = inputs["input_ids"][0]
        further = set(ids_T[len(expected_T) :].tolist())
        if torch.equal(ids_T[: len(expected_T)], expected_T) and further <= {processor.tokenizer.eos_token_id}:
            if further:
                log.warning(
                    "the student's tokenizer ends every prompt with EOS, which training leaves out: take it out of "
                    "post_processor in its tokenizer.json"
                )
            return inputs
        faults.append(f"it gives {processor.tokenizer.decode(inputs['input_ids'][0])[:200]!r}")
    raise UserError(
        "the processor's chat template does not give the prompt of training, "
        f"{trained_with.tokenizer.decode(expected_T)[:200]!r}: {'; '.join(faults)}. Correct its chat_template.jinja"
    )


def _as_trained(processor: Any) -> dict[str, str]:
    """What `apply_chat_template` takes besides, so that the processor's own template writes what training rendered."""
    template = processor.chat_template
    return {"chat_template": on_one_day(template)} if isinstance(template, str) else {}


def _in_parts(processor: Any) -> dict[str, Tensor]:
    parts = [{"type": "image", "image": _PICTURE}, {"type": "text", "text": QUESTION}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **_as_trained(processor),
        )
    )


def _in_text(processor: Any) -> dict[str, Tensor]:
    content = processor.image_token + QUESTION
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, **_as_trained(processor)
    )
    bos = processor.tokenizer.bos_token
    special = not (bos and text.startswith(bos))  # as `apply_chat_template` decides for parts
    return dict(processor(text=text, images=[[_PICTURE]], add_special_tokens=special, return_tensors="pt"))


@torch.inference_mode()
def answer(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Generate two tokens: the prompt, and a step with its cache. Raises UserError where that fails."""
    cast = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True)
    try:
        with generating(model, settings):
            output: Any = model.generate(**cast)  # pyrefly: ignore [not-callable]
    except Exception as error:  # of any type: models raise many
        raise UserError(f"the export cannot answer a question: {type(error).__name__}: {error}") from error
    if any(bool(logits_BV.isnan().any()) for logits_BV in output.logits):
        raise UserError(f"the export answers a question with NaN, in {model.dtype}: the model has diverged")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    """The tensor as whole numbers, so that zeros have signs and NaN equals itself."""
    integers = {2: torch.int16, 4: torch.int32}.get(tensor.itemsize, torch.uint8)
    return tensor.detach().contiguous().reshape(-1).view(integers)
