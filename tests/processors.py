"""Each family's own processor, in miniature: its tokens in the order of `families.ADDED`, images of 16 pixels.

Not here: Mistral 3 (its processor needs torchvision) and SmolVLM (its processor needs num2words).
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from families import PINPOINTS
from tiny import VOCABULARY, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)

SQUARE = {"height": 16, "width": 16}


def tokenizer(*tokens: str, **roles: str) -> PreTrainedTokenizerFast:
    """The tiny base vocabulary with a family's five tokens on top, in the order of `families.ADDED`."""
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    core["added_tokens"] = [token for token in core["added_tokens"] if token["id"] < VOCABULARY]
    backend = Tokenizer.from_str(json.dumps(core))
    backend.add_special_tokens(list(tokens))
    ends = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=roles, **ends)


def template(image: str) -> str:
    """ChatML; `image` is what the family's template writes where an image stands."""
    content = "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}" + content + "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def idefics3() -> ProcessorMixin:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    tokens = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>")
    return Idefics3Processor(images, tokens, image_seq_len=4, chat_template=template("<image>"))


def llava(
    processor: type[ProcessorMixin], image_processor: type, strategy: str = "default", **settings: Any
) -> ProcessorMixin:
    images = image_processor(size={"shortest_edge": 16}, crop_size=SQUARE, **settings)
    return processor(
        images,
        tokenizer("<image>", "<s>", "</s>", "<break>", "<video>"),
        patch_size=4,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )


def llava_onevision() -> ProcessorMixin:
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer("<image>", "<s>", "</s>", "<break>", "<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )


def qwen_vl(processor: type[ProcessorMixin]) -> ProcessorMixin:
    area = {"shortest_edge": 2 * 8 * 8, "longest_edge": 16 * 8 * 8}
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=area)
    tokens = tokenizer("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<break>", "<|video_pad|>")
    return processor(images, tokens, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"))


def internvl3() -> ProcessorMixin:
    roles = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer("<IMG_CONTEXT>", "<img>", "</img>", "<break>", "<video>", **roles, video_token="<video>")
    images = GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=3)
    return InternVLProcessor(images, tokens, image_seq_length=4, chat_template=template("<IMG_CONTEXT>\n"))


def gemma3() -> ProcessorMixin:
    roles = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(*roles.values(), "<break>", "<video>", **roles)
    images = Gemma3ImageProcessorPil(size=SQUARE)
    return Gemma3Processor(images, tokens, image_seq_length=4, chat_template=template("<start_of_image>"))


PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "idefics3": idefics3,
    "llava": lambda: llava(LlavaProcessor, CLIPImageProcessorPil),
    "llava_next": lambda: llava(LlavaNextProcessor, LlavaNextImageProcessorPil, image_grid_pinpoints=PINPOINTS),
    "llava_onevision": llava_onevision,
    "qwen2_vl": lambda: qwen_vl(Qwen2VLProcessor),
    "qwen2_5_vl": lambda: qwen_vl(Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: qwen_vl(Qwen3VLProcessor),
    "internvl3": internvl3,
    "gemma3": gemma3,
}


@cache
def processor_of(name: str) -> ProcessorMixin:
    """Some processors also take videos, with a part that needs torchvision: they are made without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        return PROCESSORS[name]()
