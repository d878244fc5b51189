"""Make a Hugging Face folder of a GGUF file: safetensors, configuration, tokenizer and chat template.

    python -m lingu_ray.convert_gguf FOLDER_OR_FILE OUT [--dtype float32|bfloat16]

Transformers reads GGUF by itself (with the packages `gguf` and `accelerate`), but refuses to save what it read so;
here the weights go into a fresh model of the same class. Quantised weights are dequantised: what quantising lost stays
lost.
"""

import argparse
import sys
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from lingu_ray.errors import UserError
from lingu_ray.shell import shell_word


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
    """Write the model of `source` (a GGUF file, or a folder with one) to the folder `out`, its weights in `dtype`."""
    gguf = find_gguf(source)
    tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m lingu_ray.convert_gguf", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="GGUF file, or a folder that holds exactly one")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights written")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.out, getattr(torch, arguments.dtype))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {shell_word(arguments.out)}")


if __name__ == "__main__":
    main(sys.argv[1:])
