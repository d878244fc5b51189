"""Convert a nanoVLM checkpoint into a Hugging Face folder of class Idefics3, which Transformers and vLLM load.

FOLDER_OR_HUB_ID holds config.json and model.safetensors; OUT is the folder to write.

nanoVLM (github.com/huggingface/nanoVLM) is what Idefics3, the class of SmolVLM, is under other names: SigLIP, pixel
shuffle, a linear projector, Llama. For the same ids and pixels the logits are the same, up to
`lm_max_position_embeddings` (beyond it nanoVLM stretches its rotary angles). Dropout is left at 0.

**Weights.** The tower's fused q, k and v are split. Both fold patches in the same order (row, column, channel), so the
projector stays as it is. nanoVLM shows its tower pixels in [0, 1]; Idefics3 takes an image that is 0 everywhere for
padding and would lose a black tile. So pixels are normalized to [-1, 1], and the patch embedding is rewritten to match.

**Prompt.** Where nanoVLM writes `<row_1_col_1>`, Idefics3's processor and vLLM write
`<fake_token_around_image><row_1_col_1>`: nanoVLM's tokens keep their ids under these longer names. The order of the
parts cannot be set. An image with tiles is

    in nanoVLM    <global> image… <row_1_col_1> image… <row_1_col_2> image… …
    here          <row_1_col_1> image… <row_1_col_2> image… … \\n\\n <global> image… <fake_token_around_image>

and one without is `<global> image…` there, with `<fake_token_around_image>` after it here. This token and
`<end_of_utterance>` are new: their embeddings are the mean of the others. Where nanoVLM had no global token, that one
is new too, and the global image of a tiled one is as well.

**Images.** With `resize_to_max_side_len` both scale the longer side to `max_img_size` and cut tiles of `vit_img_size`,
bicubic. Idefics3 resizes in two steps, and makes its global image by bicubic filtering instead of bilinear. On average
pixels (0 to 1) differ by up to 0.001 in tiles (0.04 on a drawn page of text), and by 0.001 to 0.03
in the global image. One picture size in 800 has a row or column of tiles less (sides a hair over a whole tile).
Without `resize_to_max_side_len`, pictures up to `max_img_size` are cut as nanoVLM cuts them; larger ones are not scaled
down but give more tiles, and vLLM, which counts tiles as if every picture were scaled, cannot be shown images.
Checkpoints that never split (no `max_img_size`) see the same pixels.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from transformers import GenerationConfig

from lingu_ray.atomic import require_new_folder, whole_folder
from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.nanovlm.checkpoint import read_checkpoint
from lingu_ray.nanovlm.processor import build_processor
from lingu_ray.nanovlm.weights import build_model
from lingu_ray.paths import ModelPath, absolute, model_path
from lingu_ray.shell import shell_word


class ConvertConfig(Section):
    """Settings of the command."""

    tokenizer: ModelPath | None = Field(None, description="folder or hub id; null: lm_tokenizer of config.json")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the weights written")


HELP = Help("python -m lingu_ray.convert_nanovlm FOLDER_OR_HUB_ID OUT [key=value ...]", __doc__, ConvertConfig)


def convert(source: str, out: Path, tokenizer: str | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Write the nanoVLM checkpoint `source` (folder or hub id) as an Idefics3 with its processor to the folder `out`.

    `tokenizer` is a folder or hub id, and by default the one that the checkpoint names. Weights are written in `dtype`.
    """
    require_new_folder(out)
    settings, states = read_checkpoint(source)
    processor = build_processor(settings, tokenizer or settings["lm_tokenizer"])
    model = build_model(settings, states, processor)
    nn.Module.to(model, dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can fix."""
    names, config = names_and_settings(arguments, HELP)
    if len(names) != 2:
        raise UserError(f"name a nanoVLM checkpoint, and the folder to write\nusage: {HELP.usage}")
    out = absolute(names[1])
    convert(model_path(names[0]), out, config.tokenizer, getattr(torch, config.dtype))
    print(f"wrote {shell_word(out)}")


if __name__ == "__main__":
    run_command(main)
