"""Convert a GGUF file into a Hugging Face folder: safetensors, configuration, tokenizer and chat template.

FOLDER_OR_FILE is a GGUF file, or a folder that holds exactly one; OUT is the folder to write.

Transformers reads GGUF (with the package `gguf`), but refuses to save a model that it read that way;
here the weights are copied into a new model of the same class. Quantized weights are dequantized; what quantizing lost
stays lost.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, GenerationConfig

from lingu_ray.atomic import require_new_folder, whole_folder
from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import absolute
from lingu_ray.runtime.models.gguf_tokenizer import load_tokenizer
from lingu_ray.runtime.models.weights import NOT_LOADABLE, load_whole
from lingu_ray.shell import shell_word


class ConvertConfig(Section):
    """Settings of the command."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the weights written")


HELP = Help("python -m lingu_ray.convert_gguf FOLDER_OR_FILE OUT [dtype=float32]", __doc__, ConvertConfig)


def find_gguf(source: Path) -> Path:
    """The GGUF file that `source` is, or the only one in the folder `source`."""
    if source.is_file():
        return source
    found = sorted(source.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(f"{source}: a GGUF file, or a folder with exactly one, is needed; found: {names}")
    return found[0]


def convert(source: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model of `source` (a GGUF file, or a folder with one) to the new folder `out`, its weights in `dtype`.

    Raises:
        UserError: `out` exists; `source` is no GGUF file, no folder with exactly one, or holds no whole causal LM.
    """
    require_new_folder(out)
    gguf = find_gguf(source)
    file = {"gguf_file": gguf.name}
    try:
        tokenizer = load_tokenizer(str(gguf.parent), **file)
        loaded = load_whole(AutoModelForCausalLM, str(gguf), str(gguf.parent), dtype=torch.float32, **file)
    except NOT_LOADABLE as error:
        raise UserError(f"{gguf}: cannot be loaded as a causal LM. {error}") from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can fix."""
    names, config = names_and_settings(arguments, HELP)
    if len(names) != 2:
        raise UserError(f"name a GGUF file or its folder, and the folder to write\nusage: {HELP.usage}")
    source, out = map(absolute, names)
    convert(source, out, getattr(torch, config.dtype))
    print(f"wrote {shell_word(out)}")


if __name__ == "__main__":
    run_command(main)
