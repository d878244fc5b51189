"""nanoVLM's weights in the class Idefics3. Shape suffixes: V vocabulary, D width, H and W sides of a patch."""

import torch
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor

from lingu_ray.errors import UserError, some
from lingu_ray.nanovlm.checkpoint import Settings, States

# By part of the model: replacements in a tensor's name, in this order.
_RENAMED = {
    "vision_encoder.": {
        "vision_encoder.layer_norm.": "model.vision_model.post_layernorm.",
        "vision_encoder.": "model.vision_model.",
        "patch_embedding.conv.": "embeddings.patch_embedding.",
        "patch_embedding.position_embedding": "embeddings.position_embedding.weight",
        ".blocks.": ".encoder.layers.",
        ".ln1.": ".layer_norm1.",
        ".ln2.": ".layer_norm2.",
        ".attn.": ".self_attn.",
    },
    "MP.": {"MP.": "model.connector.modality_projection."},
    "decoder.": {
        "decoder.head.": "lm_head.",
        "decoder.token_embedding.": "model.text_model.embed_tokens.",
        "decoder.": "model.text_model.",
        ".blocks.": ".layers.",
        ".attn.out_proj.": ".self_attn.o_proj.",
        ".attn.": ".self_attn.",
        ".norm1.": ".input_layernorm.",
        ".norm2.": ".post_attention_layernorm.",
    },
}
_EMBEDDING, _HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"
_PATCH = "model.vision_model.embeddings.patch_embedding"
_ANGLES = "decoder.rotary_embd.inv_freq"


def build_config(settings: Settings, processor: Idefics3Processor) -> Idefics3Config:
    """nanoVLM's settings as an Idefics3 configuration, with the size of nanoVLM's vocabulary."""
    tokenizer = processor.tokenizer
    text = {
        "model_type": "llama",
        "vocab_size": settings["lm_vocab_size"],
        "hidden_size": settings["lm_hidden_dim"],
        "intermediate_size": settings["lm_inter_dim"],
        "num_hidden_layers": settings["lm_n_blocks"],
        "num_attention_heads": settings["lm_n_heads"],
        "num_key_value_heads": settings["lm_n_kv_heads"],
        "max_position_embeddings": settings["lm_max_position_embeddings"],
        "rms_norm_eps": settings["lm_rms_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(settings["lm_re_base"])},
        "tie_word_embeddings": settings["lm_tie_weights"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": settings["vit_hidden_dim"],
        "intermediate_size": settings["vit_inter_dim"],
        "num_hidden_layers": settings["vit_n_blocks"],
        "num_attention_heads": settings["vit_n_heads"],
        "image_size": settings["vit_img_size"],
        "patch_size": settings["vit_patch_size"],
        "layer_norm_eps": settings["vit_ln_eps"],
    }
    return Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=settings["mp_pixel_shuffle_factor"],
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=settings["lm_tie_weights"],
    )


def build_model(settings: Settings, states: States, processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    """The model with nanoVLM's tensors in float32, its vocabulary extended by the tokens that only the processor has.

    Raises:
        UserError: tensors are missing, left over, or of other shapes than the configuration says.
    """
    _check_angles(settings, states.get(_ANGLES))
    states = {name: tensor for name, tensor in states.items() if name != _ANGLES}
    config = build_config(settings, processor)
    model = Idefics3ForConditionalGeneration(config).eval()
    here = model.state_dict().keys()
    renamed = {name: _names(name) for name in states}
    missing = here - {new for names in renamed.values() for new in names}
    if settings["lm_tie_weights"] and len(missing & {_EMBEDDING, _HEAD}) == 1:
        missing -= {_EMBEDDING, _HEAD}  # saved once, under either name
    left_over = [name for name, names in renamed.items() if not here >= set(names)]
    if missing or left_over:
        raise UserError(
            "model.safetensors and config.json do not fit each other. "
            f"Missing: {some(sorted(missing), 5) or 'none'}. Left over: {some(left_over, 5) or 'none'}"
        )
    try:
        model.load_state_dict(_transformed(states))
    except RuntimeError as error:
        raise UserError(f"model.safetensors and config.json do not fit each other. {error}") from error
    _grow(model, settings["lm_vocab_size"], len(processor.tokenizer))
    return model


def _names(name: str) -> list[str]:
    """Idefics3's names of a nanoVLM tensor: three for nanoVLM's fused q, k and v."""
    for part, pieces in _RENAMED.items():
        if name.startswith(part):
            for old, new in pieces.items():
                name = name.replace(old, new)
    return [name.replace(".qkv_", f".{letter}_") for letter in "qkv"] if ".qkv_" in name else [name]


def _transformed(states: States) -> States:
    """The tensors under Idefics3's names and in its shapes."""
    new: States = {}
    for name, tensor in states.items():
        names = _names(name)
        new |= zip(names, tensor.float().chunk(len(names)), strict=True)
    position = "model.vision_model.embeddings.position_embedding.weight"
    new[position] = new[position].squeeze(0)
    # nanoVLM's pixels are in [0, 1], here they are p = 2x - 1: W x + b = (W / 2) p + (b + ΣW / 2)
    weight_DCHW = new[f"{_PATCH}.weight"]
    new[f"{_PATCH}.bias"] = (new[f"{_PATCH}.bias"] + weight_DCHW.double().sum(dim=(1, 2, 3)) / 2).float()
    new[f"{_PATCH}.weight"] = weight_DCHW / 2
    new.setdefault(_HEAD, new.get(_EMBEDDING, torch.empty(0)))
    new.setdefault(_EMBEDDING, new[_HEAD])
    return new


def _check_angles(settings: Settings, saved: Tensor | None) -> None:
    """nanoVLM saves its rotary frequencies, Llama computes them: they must be the same (up to a saved bfloat16)."""
    size = settings["lm_hidden_dim"] // settings["lm_n_heads"]
    computed = settings["lm_re_base"] ** -(torch.arange(0, size, 2) / size)
    if saved is not None and (saved.shape != computed.shape or not torch.allclose(saved.float(), computed, rtol=0.01)):
        raise UserError(f"{_ANGLES} of model.safetensors is not what lm_re_base of config.json gives")


def _grow(model: Idefics3ForConditionalGeneration, old: int, new: int) -> None:
    """New tokens start at the mean of the old ones: by convexity none has a probability above 1 / `old`."""
    if new <= old:
        return
    model.resize_token_embeddings(new, mean_resizing=False)
    with torch.no_grad():
        for rows_VD in (model.get_input_embeddings().weight, model.lm_head.weight):
            rows_VD[old:] = rows_VD[:old].mean(0)
