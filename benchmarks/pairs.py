"""Pairs of student and teacher in the shapes of known models, with random weights: no hub, no files.

SmolVLM-256M   SmolLM2-135M with a head of its own, and SigLIP-B/16 at 512 pixels: 64 tokens a tile
SmolVLM-500M   SmolLM2-360M, and the same tower
nanoVLM-460M   the same, its head tied to the embeddings
Qwen2-VL-2B    Qwen2-1.5B with M-RoPE, and Qwen's tower of 0.67 B weights
tiny           SmolVLM's class with next to nothing in it
tiny-mrope     the same of Qwen2-VL's
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Generator, Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Idefics3Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
)

from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample

PairName = Literal["SmolVLM-256M", "SmolVLM-500M", "nanoVLM-460M", "Qwen2-VL-2B", "tiny", "tiny-mrope"]
VOCABULARY = 49152
SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


@dataclass(frozen=True)
class Pair:
    """Configurations of both, the id of image tokens, and `image`: the tower's tensors for about so many of them."""

    student: PreTrainedConfig
    teacher: PreTrainedConfig
    image_token: int
    image: Callable[[int, Generator], tuple[int, dict[str, Tensor]]]

    def make_student(self) -> PreTrainedModel:
        """The student, float32, in training mode."""
        return AutoModelForImageTextToText.from_config(self.student).train()

    def make_teacher(self) -> PreTrainedModel:
        """The teacher, float32."""
        return AutoModelForCausalLM.from_config(self.teacher)

    def save_teacher(self, teacher: PreTrainedModel, folder: Path) -> None:
        """Write the teacher as a run reads it, with a tokenizer that has a word for each id."""
        teacher.save_pretrained(folder)
        words = WordLevel({f"word{i}": i for i in range(self.teacher.vocab_size)}, unk_token="word0")
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="word0").save_pretrained(folder)

    def micro_batch(self, sizes: dict[str, Any], seed: int) -> MicroBatch:
        """Random rows of the sizes: `rows`, and those of a `sample`."""
        generator = Generator().manual_seed(seed)
        return collate([self.sample(sizes, position, generator) for position in range(sizes["rows"])], pad_id=0)

    def sample(self, sizes: dict[str, Any], position: int, generator: Generator) -> Sample:
        """A random row of image, question and answer: of `image_tokens`, `text_tokens` and `answer_tokens`.

        Of images as many tokens as whole tiles have.
        """
        count, vision = self.image(sizes["image_tokens"], generator)
        known = min(self.image_token, self.teacher.vocab_size)
        words_T = torch.randint(known, (sizes["text_tokens"] + sizes["answer_tokens"],), generator=generator)
        ids_T = torch.cat([torch.full((count,), self.image_token), words_T])
        supervised_T = torch.arange(len(ids_T)) >= len(ids_T) - sizes["answer_tokens"]
        return Sample("images", position, ids_T, supervised_T, ids_T == self.image_token, vision)


def named_pair(name: PairName) -> Pair:
    """The pair of that name."""
    return _PAIRS[name]()


def llama_pair(layers: int, hidden: int, image_tokens: int) -> Pair:
    """A decoder of SmolLM2's proportions, and a tower so small that it hides nothing; one tile has all image tokens."""
    heads = hidden // 64
    side = round(image_tokens**0.5)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    teacher = llama(hidden, hidden * 8 // 3, layers, heads, heads // 3)
    return idefics3_pair(teacher, added=128, tower=tower | {"image_size": side * 4, "patch_size": 4}, scale_factor=1)


def _smolvlm(hidden: int, layers: int, heads: int, added: int, tied: bool) -> Pair:
    teacher = llama(hidden, hidden * 8 // 3, layers, heads, heads // 3)
    return idefics3_pair(teacher, added, SIGLIP | {"image_size": 512, "patch_size": 16}, scale_factor=4, tied=tied)


def _tiny() -> Pair:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher = llama(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=512)
    return idefics3_pair(teacher, added=8, tower=tower | {"image_size": 16, "patch_size": 4}, scale_factor=2)


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int = VOCABULARY
) -> LlamaConfig:
    """A tied decoder of these sizes."""
    return LlamaConfig(**_sizes(hidden, intermediate, layers, heads, kv_heads, vocabulary))


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    """A tied decoder's sizes, as configurations name them."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": True,
    }


def idefics3_pair(
    teacher: LlamaConfig, added: int, tower: dict[str, int], scale_factor: int, tied: bool = True
) -> Pair:
    """The class of SmolVLM on that teacher; the first of the `added` ids is the image token."""
    size = tower["image_size"]
    tokens_a_tile = (size // tower["patch_size"] // scale_factor) ** 2
    student = Idefics3Config(
        text_config=teacher.to_dict() | {"vocab_size": teacher.vocab_size + added, "tie_word_embeddings": tied},
        vision_config=tower,
        scale_factor=scale_factor,
        image_token_id=teacher.vocab_size,
        tie_word_embeddings=tied,
    )

    def image(tokens: int, generator: Generator) -> tuple[int, dict[str, Tensor]]:
        tiles = max(1, round(tokens / tokens_a_tile))
        pixels = torch.randn(1, tiles, 3, size, size, generator=generator)
        mask = torch.ones(1, tiles, size, size, dtype=torch.bool)
        return tiles * tokens_a_tile, {"pixel_values": pixels, "pixel_attention_mask": mask}

    return Pair(student, teacher, teacher.vocab_size, image)


def _qwen2_vl(teacher: Qwen2Config, image_token: int, sections: list[int], tower: dict[str, int]) -> Pair:
    """Qwen2-VL on that teacher; `sections`: how many frequencies turn with time, height and width."""
    text = teacher.to_dict()
    rope = text["rope_parameters"] | {"mrope_section": sections}
    student = Qwen2VLConfig(
        text_config=text | {"model_type": "qwen2_vl_text", "rope_parameters": rope},
        vision_config=tower | {"hidden_size": teacher.hidden_size},
        image_token_id=image_token,
        tie_word_embeddings=True,
    )
    numbers = 3 * 2 * tower["patch_size"] ** 2

    def image(tokens: int, generator: Generator) -> tuple[int, dict[str, Tensor]]:
        side = round(tokens**0.5)
        patches = torch.randn(4 * side**2, numbers, generator=generator)
        return side**2, {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]])}

    return Pair(student, teacher, image_token, image)


def _qwen2_vl_2b() -> Pair:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    teacher = Qwen2Config(
        **_sizes(1536, 8960, layers=28, heads=12, kv_heads=2, vocabulary=151936), rope_parameters=rope
    )
    return _qwen2_vl(teacher, 151655, [16, 24, 24], {"depth": 32, "embed_dim": 1280, "num_heads": 16, "patch_size": 14})


def _tiny_mrope() -> Pair:
    teacher = Qwen2Config(**_sizes(64, 128, layers=2, heads=4, kv_heads=2, vocabulary=512))
    return _qwen2_vl(teacher, 500, [2, 3, 3], {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 4})


_PAIRS: dict[PairName, Callable[[], Pair]] = {
    "SmolVLM-256M": lambda: _smolvlm(hidden=576, layers=30, heads=9, added=128, tied=False),
    "SmolVLM-500M": lambda: _smolvlm(hidden=960, layers=32, heads=15, added=128, tied=False),
    "nanoVLM-460M": lambda: _smolvlm(hidden=960, layers=32, heads=15, added=66, tied=True),
    "Qwen2-VL-2B": _qwen2_vl_2b,
    "tiny": _tiny,
    "tiny-mrope": _tiny_mrope,
}
