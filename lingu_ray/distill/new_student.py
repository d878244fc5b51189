"""A new student: the teacher's decoder and head with a vision tower and a random projector.

It is an Idefics3, and with a CLIP tower a LLaVA.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from lingu_ray.distill.head import output_head
from lingu_ray.distill.towers import States, VisionParts
from lingu_ray.errors import UserError

_EMBEDDINGS = "embed_tokens.weight"
_IMAGE = "<image>"
_IMAGE_TOKENS = ("<fake_token_around_image>", _IMAGE, "<end_of_utterance>", "<global-img>")
# what LLaVA 1.5 takes of its CLIP
_LAST_BUT_ONE, _WITHOUT_CLASS_TOKEN = -2, "default"

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


def build_processor(tokenizer: PreTrainedTokenizerBase, vision: VisionParts) -> ProcessorMixin:
    """The processor of a new VLM: the teacher's tokenizer with image tokens added, one square per image.

    The chat template is ChatML where the tokenizer has its tokens, else "User: …/Assistant: …<eos>". The tokenizer is
    changed.

    Raises:
        UserError: it has neither these tokens nor an EOS, so that no answer would end; or image tokens would get the
            ids of others.
    """
    chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys()
    if not chatml and tokenizer.eos_token is None:
        raise UserError("no VLM can be made of the teacher: its tokenizer has no eos_token, by which answers would end")
    template = CHATML if chatml else PLAIN
    tokenizer.chat_template = template
    if isinstance(vision.tower, CLIPVisionConfig):
        return _llava_processor(tokenizer, vision, template)
    _add_tokens(tokenizer, _IMAGE_TOKENS)
    side = {"longest_edge": cast(int, vision.tower.image_size)}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False, **vision.images)
    return Idefics3Processor(images, tokenizer, image_seq_len=vision.image_tokens, chat_template=template)


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> None:
    """Add special tokens, each with an id of its own: in a vocabulary with holes `tokenizers` gives ids twice."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    by_id: dict[int, list[str]] = {}
    for token, i in tokenizer.get_vocab().items():
        by_id.setdefault(i, []).append(token)
    if shared := [sorted(those) for those in by_id.values() if len(those) > 1 and {*those} & {*tokens}]:
        hole = next(i for i in range(max(by_id)) if i not in by_id)
        raise UserError(
            f"no VLM can be made of the teacher: {' and '.join(shared[0])} would have one id, for its tokenizer has no "
            f"token of id {hole}: add one for each id that is left out to its tokenizer.json"
        )


def _llava_processor(tokenizer: PreTrainedTokenizerBase, vision: VisionParts, template: str) -> LlavaProcessor:
    """LLaVA's, for pictures squeezed into a square: CLIP's own would cut off what is beside the middle."""
    _add_tokens(tokenizer, (_IMAGE,))
    square = dict.fromkeys(("height", "width"), cast(int, vision.tower.image_size))
    return LlavaProcessor(
        CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False, **vision.images),
        tokenizer,
        patch_size=vision.tower.patch_size,
        vision_feature_select_strategy=_WITHOUT_CLASS_TOKEN,
        num_additional_image_tokens=1,
        chat_template=template,
    )


def check_teacher(teacher: PreTrainedModel) -> None:
    """Check that a VLM can be made of the teacher, whose weights may be on the meta device.

    Raises:
        UserError: its head has a bias, its logits a scale or soft cap, which the classes of new VLMs would leave out,
            or its decoder names its embeddings otherwise than Llama's.
    """
    head = output_head(teacher)
    refused = f"no VLM can be made of the teacher, {teacher.config.model_type}:"
    if head.scale != 1 or head.softcap is not None:
        raise UserError(f"{refused} its logits have a scale or soft cap, which Idefics3 and LLaVA leave out")
    if _EMBEDDINGS not in cast(PreTrainedModel, teacher.base_model).state_dict():
        raise UserError(f"{refused} its decoder has no {_EMBEDDINGS}")


def build_student(
    teacher: PreTrainedModel, processor: ProcessorMixin, vision: VisionParts, seed: int, tower: States | None = None
) -> PreTrainedModel:
    """A new VLM in float32 whose decoder and head are the teacher's; `processor` as `build_processor` makes it.

    `tower`: weights of a pretrained one, as `towers.tower_states` gives them. Equal seeds give equal projectors, and
    equal towers where it is None. The teacher, in float32, is not changed.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    image_token = cast(int, tokenizer.convert_tokens_to_ids(_IMAGE))
    vocabulary = max(tokenizer.get_vocab().values()) + 1  # ids may be left out
    config = student_config(teacher.config, vision, vocabulary, image_token, tokenizer.pad_token_id)
    is_llava = isinstance(config, LlavaConfig)
    model = LlavaForConditionalGeneration(config) if is_llava else Idefics3ForConditionalGeneration(config)
    if tower is not None:
        model.get_encoder(modality="image").load_state_dict(tower)
    _take_decoder(model, teacher)
    model.generation_config.eos_token_id = _turn_end(processor.tokenizer)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def _take_decoder(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Copy decoder and head of the teacher into the model, which has more tokens."""
    decoder, vocabulary = model.get_decoder(), teacher.config.vocab_size
    states = teacher.get_decoder().state_dict()
    own_VD, states[_EMBEDDINGS] = states[_EMBEDDINGS], cast(Tensor, decoder.get_input_embeddings().weight)
    decoder.load_state_dict(states)
    with torch.no_grad():
        for target_VD, source_VD in (
            (states[_EMBEDDINGS], own_VD),
            (output_head(model).weight_VD, output_head(teacher).weight_VD),
        ):
            target_VD[:vocabulary] = source_VD
            # new tokens start at the mean of the old ones, so that their logits are no outliers
            target_VD[vocabulary:] = source_VD.mean(0)


def student_config(
    teacher: PreTrainedConfig, vision: VisionParts, vocabulary: int, image_token: int, pad_token: int | None
) -> Idefics3Config | LlavaConfig:
    """The configuration of a new VLM; `vocabulary`: ids of its tokenizer, the image tokens included."""
    settings = {name: value for name, value in teacher.to_dict().items() if name != "quantization_config"}  # of GGUF
    text = type(teacher).from_dict({**settings, "vocab_size": max(vocabulary, teacher.vocab_size)})
    common = {
        "text_config": text,
        "vision_config": vision.tower,
        "tie_word_embeddings": bool(teacher.tie_word_embeddings),
    }
    if isinstance(vision.tower, CLIPVisionConfig):
        return LlavaConfig(
            image_token_index=image_token,
            image_seq_length=vision.image_tokens,
            vision_feature_layer=_LAST_BUT_ONE,
            vision_feature_select_strategy=_WITHOUT_CLASS_TOKEN,
            **common,
        )
    return Idefics3Config(
        scale_factor=vision.pixel_shuffle, image_token_id=image_token, pad_token_id=pad_token, **common
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
    return cast(int, tokenizer.convert_tokens_to_ids(token))
