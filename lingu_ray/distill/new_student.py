"""A new student: the teacher's decoder and head with a random vision tower and projector, in the Idefics3 class."""

from __future__ import annotations

from typing import cast

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from lingu_ray.distill.head import output_head
from lingu_ray.errors import UserError

_IMAGE_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")

# How the turns of a new VLM are written. `turn_end` must be one token of the teacher's vocabulary.
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant: " + _CONTENT + "{{ eos_token }}\n"
    # a newline right after a block would be trimmed
    "{% else %}{{ message['role'] | capitalize }}: " + _CONTENT + "{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_processor(
    tokenizer: PreTrainedTokenizerBase, vision: Idefics3VisionConfig, pixel_shuffle: int
) -> ProcessorMixin:
    """The processor of a new VLM: the teacher's tokenizer with image tokens added, one square per image.

    `pixel_shuffle`: side of the square of patches that become one image token. The chat template is ChatML where the
    tokenizer has its tokens, else "User: …/Assistant: …<eos>". The tokenizer is changed.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": list(_IMAGE_TOKENS)})
    image_size, patch_size = cast(int, vision.image_size), cast(int, vision.patch_size)
    side = {"longest_edge": image_size}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys()
    tokens = (image_size // patch_size // pixel_shuffle) ** 2
    template = CHATML if chatml else PLAIN
    tokenizer.chat_template = template
    return Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template)


def build_student(
    teacher: PreTrainedModel, processor: ProcessorMixin, vision: Idefics3VisionConfig, pixel_shuffle: int, seed: int
) -> PreTrainedModel:
    """A new VLM in float32 whose decoder and head are the teacher's; `processor` and `vision` as `build_processor`'s.

    Equal seeds give equal towers and projectors. The teacher, in float32, is not changed.

    Raises:
        UserError: the decoder that its configuration makes in a VLM has other weights than the teacher's.
    """
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(_idefics3_config(teacher.config, processor, vision, pixel_shuffle))
    decoder, vocabulary = model.get_decoder(), teacher.config.vocab_size
    states = teacher.get_decoder().state_dict()
    embedding_VD = states.pop("embed_tokens.weight")
    different = decoder.load_state_dict(states, strict=False)
    if set(different.missing_keys) != {"embed_tokens.weight"} or different.unexpected_keys:
        names = {*different.missing_keys, *different.unexpected_keys} - {"embed_tokens.weight"}
        raise UserError(
            f"no VLM can be made of the teacher: its decoder is built otherwise, by {', '.join(sorted(names))}"
        )
    with torch.no_grad():
        for target_VD, source_VD in (
            (decoder.get_input_embeddings().weight, embedding_VD),
            (model.lm_head.weight, output_head(teacher).weight_VD),
        ):
            target_VD[:vocabulary] = source_VD
            # new tokens start at the mean of the old ones, so that their logits are no outliers
            target_VD[vocabulary:] = source_VD.mean(0)
    model.generation_config.eos_token_id = _turn_end(processor.tokenizer)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def _idefics3_config(
    teacher: PreTrainedConfig, processor: ProcessorMixin, vision: Idefics3VisionConfig, pixel_shuffle: int
) -> Idefics3Config:
    tokenizer = processor.tokenizer
    settings = {name: value for name, value in teacher.to_dict().items() if name != "quantization_config"}  # of GGUF
    text = type(teacher).from_dict({**settings, "vocab_size": max(len(tokenizer), teacher.vocab_size)})
    return Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=pixel_shuffle,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=bool(teacher.tie_word_embeddings),
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
    return cast(int, tokenizer.convert_tokens_to_ids(token))
