"""Make a Hugging Face folder of a nanoVLM checkpoint: class Idefics3, which Transformers and vLLM load as it is.

    python -m lingu_ray.convert_nanovlm FOLDER_OR_HUB_ID OUT [--tokenizer FOLDER_OR_HUB_ID] [--dtype float32|bfloat16]

nanoVLM (github.com/huggingface/nanoVLM) is what Idefics3, the class of SmolVLM, is under other names: SigLIP, pixel
shuffle, a linear projector, Llama. For the same ids and pixels the logits are the same, up to
`lm_max_position_embeddings` (beyond it nanoVLM stretches its rotary angles). Dropout is left at 0.

**Weights.** The tower's fused q, k and v are split. Both fold patches in the same order (row, column, channel), so the
projector stays as it is. nanoVLM shows its tower pixels in [0, 1]; Idefics3 takes an image that is 0 everywhere for
padding and would lose a black tile. So pixels are normalised to [-1, 1], and the patch embedding is rewritten to match.

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

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig

from lingu_ray.errors import UserError
from lingu_ray.nanovlm.checkpoint import read_checkpoint
from lingu_ray.nanovlm.processor import build_processor
from lingu_ray.nanovlm.weights import build_model
from lingu_ray.shell import shell_word


def convert(source: str, out: Path, tokenizer: str | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Write the nanoVLM checkpoint `source` (folder or hub id) as an Idefics3 with its processor to the folder `out`.

    `tokenizer` is a folder or hub id, and by default the one that the checkpoint names. Weights are written in `dtype`.
    """
    settings, states = read_checkpoint(source)
    processor = build_processor(settings, tokenizer or settings["lm_tokenizer"])
    model = build_model(settings, states, processor)
    nn.Module.to(model, dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m lingu_ray.convert_nanovlm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", help="folder with config.json and model.safetensors, or hub id")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", help="folder or hub id; by default lm_tokenizer of config.json")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights written")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.out, arguments.tokenizer, getattr(torch, arguments.dtype))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {shell_word(arguments.out)}")


if __name__ == "__main__":
    main(sys.argv[1:])
