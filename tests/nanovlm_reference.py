"""nanoVLM for tests, written anew from its description: a checkpoint in its format, its forward pass, prompt, images.

Shape suffixes: N images, P patches or tokens of one, T tokens, D width, H heads, E head size, V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BASE = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *("ĊĊ", "us", "user", "er"),
]
EXTRA = {
    "image_token": "<|image|>",
    "global_image_token": "<|global_image|>",
    **{f"r{i}c{j}": f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)},
}
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SETTINGS: dict[str, Any] = {
    "vit_hidden_dim": 32,
    "vit_inter_dim": 48,
    "vit_patch_size": 8,
    "vit_img_size": 32,
    "vit_n_heads": 2,
    "vit_n_blocks": 2,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "lm_hidden_dim": 64,
    "lm_inter_dim": 96,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100000,
    "lm_max_position_embeddings": 1024,
    "lm_vocab_size": len(BASE) + len(EXTRA),
    "lm_n_heads": 2,
    "lm_n_kv_heads": 1,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_tie_weights": True,
    "lm_chat_template": TEMPLATE,
    "mp_pixel_shuffle_factor": 2,
    "max_img_size": 128,
    "resize_to_max_side_len": True,
    "vlm_extra_tokens": EXTRA,
}
# The first nanoVLM: no image token, no splitting, no chat template.
FIRST = {k: v for k, v in SETTINGS.items() if k not in ("lm_chat_template", "max_img_size", "vlm_extra_tokens")} | {
    "lm_vocab_size": len(BASE),
    "vit_img_size": 48,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without any image token."""
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(BASE)}, [("Ċ", "Ċ"), ("u", "s"), ("e", "r"), ("us", "er")])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(BASE[:3])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BASE[1], eos_token=BASE[2])


def random_states(settings: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under nanoVLM's names and shapes, the tied head under the name that safetensors keeps."""
    generator = torch.Generator().manual_seed(seed)
    states: dict[str, Tensor] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        states[name] = around + torch.randn(shape, generator=generator) * (
            0.1 if len(shape) == 1 else shape[-1] ** -0.5
        )

    def add_linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    width, patch = settings["vit_hidden_dim"], settings["vit_patch_size"]
    add("vision_encoder.patch_embedding.conv.weight", width, 3, patch, patch)
    add("vision_encoder.patch_embedding.conv.bias", width)
    add("vision_encoder.patch_embedding.position_embedding", 1, (settings["vit_img_size"] // patch) ** 2, width)
    blocks = [f"vision_encoder.blocks.{i}" for i in range(settings["vit_n_blocks"])]
    for norm in ["vision_encoder.layer_norm", *(f"{block}.{ln}" for block in blocks for ln in ("ln1", "ln2"))]:
        add(f"{norm}.weight", width, around=1)
        add(f"{norm}.bias", width)
    for block in blocks:
        add_linear(f"{block}.attn.qkv_proj", width, 3 * width, bias=True)
        add_linear(f"{block}.attn.out_proj", width, width, bias=True)
        add_linear(f"{block}.mlp.fc1", width, settings["vit_inter_dim"], bias=True)
        add_linear(f"{block}.mlp.fc2", settings["vit_inter_dim"], width, bias=True)

    lm, inner = settings["lm_hidden_dim"], settings["lm_inter_dim"]
    add_linear("MP.proj", width * settings["mp_pixel_shuffle_factor"] ** 2, lm, bias=False)
    head = lm // settings["lm_n_heads"]
    add("decoder.head.weight", settings["lm_vocab_size"], lm)
    add("decoder.norm.weight", lm, around=1)
    states["decoder.rotary_embd.inv_freq"] = 1 / settings["lm_re_base"] ** (torch.arange(0, head, 2).float() / head)
    for i in range(settings["lm_n_blocks"]):
        block = f"decoder.blocks.{i}"
        add(f"{block}.norm1.weight", lm, around=1)
        add(f"{block}.norm2.weight", lm, around=1)
        add_linear(f"{block}.attn.q_proj", lm, lm, bias=False)
        add_linear(f"{block}.attn.k_proj", lm, head * settings["lm_n_kv_heads"], bias=False)
        add_linear(f"{block}.attn.v_proj", lm, head * settings["lm_n_kv_heads"], bias=False)
        add_linear(f"{block}.attn.out_proj", lm, lm, bias=False)
        add_linear(f"{block}.mlp.gate_proj", lm, inner, bias=False)
        add_linear(f"{block}.mlp.up_proj", lm, inner, bias=False)
        add_linear(f"{block}.mlp.down_proj", inner, lm, bias=False)
    return states


def write_checkpoint(folder: Path, settings: dict[str, Any], states: dict[str, Tensor]) -> None:
    """A nanoVLM folder; its tokenizer lies in `folder / "tokenizer"`, where the settings point."""
    tokenizer().save_pretrained(folder / "tokenizer")
    settings = settings | {"lm_tokenizer": str(folder / "tokenizer")}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(states, folder / "model.safetensors")


def teacher() -> LlamaForCausalLM:
    """A text-only LM of the architecture of `SETTINGS`, as nanoVLM starts from."""
    config = LlamaConfig(
        vocab_size=len(BASE),
        hidden_size=SETTINGS["lm_hidden_dim"],
        intermediate_size=SETTINGS["lm_inter_dim"],
        num_hidden_layers=SETTINGS["lm_n_blocks"],
        num_attention_heads=SETTINGS["lm_n_heads"],
        num_key_value_heads=SETTINGS["lm_n_kv_heads"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


class Part:
    """The tensors below a prefix, and the layers that nanoVLM makes of them."""

    def __init__(self, states: dict[str, Tensor], prefix: str) -> None:
        self.states = {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.states[f"{name}.weight"], self.states.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.states[f"{name}.weight"] + self.states[f"{name}.bias"]

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.states[f"{name}.weight"]


def attention(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, causal: bool) -> Tensor:
    """`[T, H · E]`; the leading dimensions, if any, are batches."""
    q, k, v = (x.transpose(-3, -2) for x in (q_THE, k_THE, v_THE))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


def rotated(x_THE: Tensor, base: float) -> Tensor:
    """Rotary positions: the first half of a head is turned against the second."""
    half = x_THE.shape[-1] // 2
    angles = torch.arange(len(x_THE))[:, None] / base ** (torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x_THE[..., :half], x_THE[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def image_embeddings(states: dict[str, Tensor], settings: dict[str, Any], pixels: Tensor) -> Tensor:
    """`pixels` [N, 3, side, side] in [0, 1] → [N, P, D] of the decoder: tower, pixel shuffle, projector."""
    part, heads, eps = Part(states, "vision_encoder."), settings["vit_n_heads"], settings["vit_ln_eps"]
    conv = Part(part.states, "patch_embedding.conv.").states
    x_NPD = F.conv2d(pixels, conv["weight"], conv["bias"], stride=settings["vit_patch_size"]).flatten(2).mT
    x_NPD = x_NPD + part.states["patch_embedding.position_embedding"]
    for i in range(settings["vit_n_blocks"]):
        block = Part(part.states, f"blocks.{i}.")
        qkv = block.linear("attn.qkv_proj", block.layer_norm("ln1", x_NPD, eps))
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in qkv.chunk(3, dim=-1))
        x_NPD = x_NPD + block.linear("attn.out_proj", attention(q, k, v, causal=False))
        inner = block.linear("mlp.fc1", block.layer_norm("ln2", x_NPD, eps))
        x_NPD = x_NPD + block.linear("mlp.fc2", F.gelu(inner, approximate="tanh"))
    x_NPD = part.layer_norm("layer_norm", x_NPD, eps)
    side, fold = settings["vit_img_size"] // settings["vit_patch_size"], settings["mp_pixel_shuffle_factor"]
    squares = [
        x_NPD.unflatten(1, (side, side))[:, i : i + fold, j : j + fold].flatten(1)
        for i in range(0, side, fold)
        for j in range(0, side, fold)
    ]
    return torch.stack(squares, dim=1) @ states["MP.proj.weight"].T


def decode(states: dict[str, Tensor], settings: dict[str, Any], x_TD: Tensor) -> Tensor:
    """Logits `[T, V]` of embeddings `[T, D]`."""
    heads, groups = settings["lm_n_heads"], settings["lm_n_heads"] // settings["lm_n_kv_heads"]
    base, eps = settings["lm_re_base"], settings["lm_rms_eps"]
    for i in range(settings["lm_n_blocks"]):
        block = Part(states, f"decoder.blocks.{i}.")
        y_TD = block.rms_norm("norm1", x_TD, eps)
        q_THE = rotated(block.linear("attn.q_proj", y_TD).unflatten(-1, (heads, -1)), base)
        k_THE = rotated(block.linear("attn.k_proj", y_TD).unflatten(-1, (heads // groups, -1)), base)
        v_THE = block.linear("attn.v_proj", y_TD).unflatten(-1, (heads // groups, -1))
        k_THE, v_THE = (x.repeat_interleave(groups, dim=1) for x in (k_THE, v_THE))
        x_TD = x_TD + block.linear("attn.out_proj", attention(q_THE, k_THE, v_THE, causal=True))
        y_TD = block.rms_norm("norm2", x_TD, eps)
        inner = F.silu(block.linear("mlp.gate_proj", y_TD)) * block.linear("mlp.up_proj", y_TD)
        x_TD = x_TD + block.linear("mlp.down_proj", inner)
    return Part(states, "decoder.").rms_norm("norm", x_TD, eps) @ states["decoder.head.weight"].T


def logits(states: dict[str, Tensor], settings: dict[str, Any], ids: list[int], pixels: Tensor | None) -> Tensor:
    """nanoVLM's logits `[T, V]`: image embeddings stand where the image token does."""
    x_TD = states["decoder.head.weight"][torch.tensor(ids)].clone()
    if pixels is not None:
        image_id = len(BASE) + list(settings["vlm_extra_tokens"]).index("image_token")
        x_TD[torch.tensor(ids) == image_id] = image_embeddings(states, settings, pixels).flatten(0, 1)
    return decode(states, settings, x_TD)


def prompt_ids(question: str, grid: tuple[int, int] | None, image_tokens: int = 4) -> list[int]:
    """nanoVLM's ids of a user's question after an image of `grid` rows and columns of tiles; (1, 1) is a whole one."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(EXTRA.values())})
    image = ""
    if grid is not None:
        image = EXTRA["global_image_token"] + EXTRA["image_token"] * image_tokens
        tiles = [] if grid == (1, 1) else [(i + 1, j + 1) for i in range(grid[0]) for j in range(grid[1])]
        image += "".join(EXTRA[f"r{i}c{j}"] + EXTRA["image_token"] * image_tokens for i, j in tiles)
    text = f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
    return words(text, add_special_tokens=False)["input_ids"]


def tiles_of(image: Image.Image, settings: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """nanoVLM's pixels `[N, 3, side, side]` in [0, 1], global image first, and the grid (`resize_to_max_side_len`)."""
    side, longest = settings["vit_img_size"], settings["max_img_size"]
    scale = longest / max(image.size)
    columns, rows = (math.ceil(length * scale / side) for length in image.size)
    resized = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 255
    whole = F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)
    tiles = pixels.unflatten(1, (rows, side)).unflatten(3, (columns, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([whole, tiles]), (rows, columns)
