"""Convert a DINOv2 in an ONNX file into a Hugging Face folder: safetensors, configuration and image preprocessing.

FILE is an ONNX file that PyTorch has exported; OUT is the folder to write, a tower for `student.from_teacher.tower`.

The DINOv2 may be a part of the file's model: what belongs to it has the names that Transformers gives it, with any
prefix, and the rest is left out. The exporter renames what it folds, and keeps the names of biases: so the weight of a
linear layer is found by the bias that is added to its product, and the position table by its shape. Heads are 64 wide,
as in every DINOv2; those with SwiGLU layers or registers are refused. The token for masked patches, which no inference
needs, is not in such files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lingu_ray.atomic import require_new_folder, whole_folder
from lingu_ray.config.command_line import split_arguments
from lingu_ray.config.help_pages import Help, NoSettings
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import absolute, not_found
from lingu_ray.runtime.models.weights import load_whole
from lingu_ray.shell import shell_word

if TYPE_CHECKING:
    from onnx import GraphProto

HELP = Help("python -m lingu_ray.convert_dinov2 FILE OUT", __doc__, NoSettings)

HEAD_SIZE = 64
_CLASS_TOKEN, _POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
_PATCHES = "embeddings.patch_embeddings.projection.weight"
States = dict[str, Tensor]


def convert(file: Path, out: Path) -> None:
    """Write the DINOv2 of an ONNX file to the new folder `out`, in float32.

    Raises:
        UserError: `out` exists; `file` is no ONNX file, or has no whole DINOv2 in it; `onnx` is not installed.
    """
    require_new_folder(out)
    states = read_states(file)
    model = build_model(states, f"{file}")
    images = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        images.save_pretrained(temporary)


def read_states(file: Path) -> States:
    """The DINOv2's tensors in an ONNX file, by their names in published checkpoints (errors as `convert`)."""
    graph = _read(file)
    tensors = {one.name: one for one in graph.initializer}
    found = [name for name in tensors if name.endswith(_CLASS_TOKEN)]
    if len(found) != 1:
        raise UserError(
            f"{file}: there is no tensor …{_CLASS_TOKEN} in it, or several: it holds no DINOv2 by its names"
        )
    prefix = found[0].removesuffix(_CLASS_TOKEN)
    states = {name.removeprefix(prefix): _tensor(one) for name, one in tensors.items() if name.startswith(prefix)}
    for name, weight in _linear_weights(graph, prefix).items():
        if weight not in tensors:
            raise UserError(f"{file}: {name} is computed there, as in quantized files: take one in float32 or float16")
        states[name] = _tensor(tensors[weight]).T.contiguous()
    if _POSITIONS not in states:
        states[_POSITIONS] = _positions(graph, states[_CLASS_TOKEN].shape[-1], file)
    return states


def _read(file: Path) -> GraphProto:
    try:
        import onnx
    except ImportError as error:
        raise UserError("convert_dinov2 reads files by the package onnx: pip install 'lingu-ray[onnx]'") from error
    if not file.is_file():
        raise UserError(not_found(file, "file"))
    try:
        return onnx.load(file).graph
    except Exception as error:  # of several packages
        raise UserError(f"{file}: is no ONNX file, or damaged: {error}") from error


def _tensor(initializer: Any) -> Tensor:
    from onnx.numpy_helper import to_array

    return torch.from_numpy(to_array(initializer).copy()).float()


def _linear_weights(graph: GraphProto, prefix: str) -> dict[str, str]:
    """The unnamed weights, transposed in the file: for each the name that it had, by the bias added to its product."""
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith(prefix) and name.endswith(".bias")]
        weights = [products[name] for name in node.input if name in products]
        if node.op_type == "Add" and len(biases) == len(weights) == 1:
            found[f"{biases[0].removeprefix(prefix).removesuffix('bias')}weight"] = weights[0]
    return found


def _positions(graph: GraphProto, width: int, file: Path) -> Tensor:
    """The position table `[1, 1 + patches, width]`, which an export cuts into the class token's and the others'."""
    unnamed = [one for one in graph.initializer if one.name.startswith("onnx::") and [*one.dims][::2] == [1, width]]
    of_class = [one for one in unnamed if one.dims[1] == 1]
    of_patches = [one for one in unnamed if one.dims[1] > 1]
    if len(of_class) != 1 or len(of_patches) != 1:
        raise UserError(f"{file}: its position table is not found: no {_POSITIONS}, and no two tables of its shape")
    return torch.cat((_tensor(of_class[0]), _tensor(of_patches[0])), dim=1)


def build_model(states: States, origin: str) -> PreTrainedModel:
    """The model of these tensors in float32; `origin` names them in messages.

    Raises:
        UserError: tensors are missing, left over or of other shapes than a DINOv2 has.
    """
    width, _, patch_size, _ = states[_PATCHES].shape if _PATCHES in states else (0, 0, 0, 0)
    layers = {name.split(".")[2] for name in states if name.startswith("encoder.layer.")}
    side = round((states[_POSITIONS].shape[1] - 1) ** 0.5)
    if not width or width % HEAD_SIZE or not layers:
        raise UserError(f"{origin}: there is no DINOv2 with plain layers in it ({len(layers)} layers, {width} wide)")
    fc1 = states.get("encoder.layer.0.mlp.fc1.weight")
    if fc1 is None:
        raise UserError(f"{origin}: its layers have no fc1: a DINOv2 with SwiGLU, which is not read")
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_SIZE,
        mlp_ratio=fc1.shape[0] // width,
        image_size=side * patch_size,
        patch_size=patch_size,
        use_mask_token="embeddings.mask_token" in states,
    )
    return load_whole(Dinov2Model, origin, None, config=config, state_dict=states)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can fix."""
    names, settings, _ = split_arguments(arguments, HELP)
    if len(names) != 2 or settings:
        raise UserError(f"name an ONNX file, and the folder to write\nusage: {HELP.usage}")
    file, out = map(absolute, names)
    convert(file, out)
    print(f"wrote {shell_word(out)}")


if __name__ == "__main__":
    run_command(main)
