"""Reading a nanoVLM checkpoint: a folder with `config.json` and `model.safetensors`."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lingu_ray.atomic import read_json
from lingu_ray.errors import UserError
from lingu_ray.hub import HUB_ERRORS, why_not_had
from lingu_ray.paths import ask_hub

Settings = dict[str, Any]
States = dict[str, Tensor]

_FILES = ["config.json", "model.safetensors"]
_NEEDED = (
    *("vit_hidden_dim", "vit_inter_dim", "vit_patch_size", "vit_img_size", "vit_n_heads", "vit_n_blocks", "vit_ln_eps"),
    *("lm_hidden_dim", "lm_inter_dim", "lm_rms_eps", "lm_re_base", "lm_max_position_embeddings", "lm_vocab_size"),
    *("lm_n_heads", "lm_n_kv_heads", "lm_n_blocks", "lm_tie_weights", "lm_tokenizer", "mp_pixel_shuffle_factor"),
)


def read_checkpoint(source: str) -> tuple[Settings, States]:
    """Settings and tensors of the nanoVLM checkpoint `source`, a folder or hub id.

    Raises:
        UserError: it does not exist, is not nanoVLM's, or has parts that Idefics3 lacks.
    """
    folder = Path(source)
    if not folder.is_dir():
        ask_hub("nanoVLM", source)
        try:
            folder = Path(snapshot_download(source, allow_patterns=_FILES))
        except HUB_ERRORS as error:
            raise UserError(
                f"{source}: neither a folder nor a model that can be downloaded from the hub: {why_not_had(error)}"
            ) from error
    for name in _FILES:
        if not (folder / name).is_file():
            raise UserError(f"{source}: no {name}; a nanoVLM checkpoint is a folder with {' and '.join(_FILES)}")
    try:
        settings = read_json(folder / "config.json", cure="copy or download it again")
        states = load_file(folder / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{source}: model.safetensors is broken. {error}") from error
    if missing := [name for name in _NEEDED if name not in settings]:
        raise UserError(f"{source}: its config.json is not nanoVLM's; missing: {', '.join(missing)}")
    if settings.get("vit_cls_flag") or settings.get("lm_attn_scaling", 1) != 1:
        raise UserError(f"{source}: Idefics3 has no class token (vit_cls_flag) and no scaled rotary (lm_attn_scaling)")
    return settings, states
