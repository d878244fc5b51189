"""A tiny pair of models with tokenizer and processor, made from scratch: no download, no fixture file.

The teacher is a Llama with the base vocabulary; the student is an Idefics3 (the class of SmolVLM) whose decoder holds
the teacher's weights, its embedding enlarged for the image and turn tokens. Everything is seeded.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 320  # base: special tokens, bytes, merges; the student adds ADDED
ADDED = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
IMAGE_SIZE, PATCH_SIZE, PIXEL_SHUFFLE = 32, 8, 2
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE // PIXEL_SHUFFLE) ** 2

# SmolVLM's template.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@cache
def _trained_bpe() -> str:
    """Byte-level BPE of `VOCABULARY` tokens trained on Python's own help pages, as JSON: training takes a moment."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((topics[name] for name in sorted(topics)[:20]), trainer)
    return core.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The BPE with the tokens of `ADDED` on top and SmolVLM's chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bpe()),
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_processor(folder: Path | None = None) -> Idefics3Processor:
    """Processor of images of 32 × 32 pixels, four tokens each; saved to `folder` if given."""
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=False
    )
    tokenizer = tiny_tokenizer()
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)
    if folder is not None:
        processor.save_pretrained(folder)
    return processor


def tiny_teacher(
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    seed: int = 0,
    folder: Path | None = None,
) -> LlamaForCausalLM:
    """A random Llama in fp32, in eval mode; saved with the tokenizer to `folder` if given."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
        initializer_range=0.2,  # far from uniform predictions, so that comparisons mean something
    )
    teacher = LlamaForCausalLM(config).eval()
    if folder is not None:
        teacher.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return teacher


def tiny_student(
    teacher: LlamaForCausalLM, seed: int = 1, folder: Path | None = None
) -> Idefics3ForConditionalGeneration:
    """An Idefics3 with the teacher's weights in its decoder, in eval mode; saved with its processor to `folder`."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text_config = teacher.config.to_dict() | {"vocab_size": len(tokenizer)}
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": 0.2,
    }
    config = Idefics3Config(
        text_config=text_config,
        vision_config=vision_config,
        scale_factor=PIXEL_SHUFFLE,
        image_token_id=VOCABULARY + ADDED.index("<image>"),
        pad_token_id=teacher.config.pad_token_id,
        tie_word_embeddings=True,
    )
    student = Idefics3ForConditionalGeneration(config).eval()
    weights = teacher.model.state_dict()
    embedding = student.get_input_embeddings().weight.detach().clone()
    embedding[:VOCABULARY] = weights["embed_tokens.weight"]
    student.model.text_model.load_state_dict(weights | {"embed_tokens.weight": embedding})
    student.tie_weights()
    if folder is not None:
        student.save_pretrained(folder)
        tiny_processor(folder)
    return student


def picture(seed: int = 0, size: tuple[int, int] = (32, 32), encoding: str = "PNG") -> bytes:
    """Encoded bytes of a random RGB image of `size` (width, height)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format=encoding)
    return buffer.getvalue()
