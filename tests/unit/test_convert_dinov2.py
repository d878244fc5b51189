"""A DINOv2 in an ONNX file becomes a Hugging Face folder with the same weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import shake
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model
from transformers.core_model_loading import revert_weight_conversion

from lingu_ray.convert_dinov2 import convert, main
from lingu_ray.errors import UserError

NEEDS_ONNX = "needs the package onnx, which is an extra of this one: pip install onnx"


def tiny_dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, image_size=32, patch_size=8, use_mask_token=False)
    return shake(Dinov2Model(config)).eval()


def write_onnx(model: Dinov2Model, file: Path, folded: bool = True, without: str = "nothing") -> None:
    """What an export leaves of a model that has this DINOv2 as its backbone, and a decoder: tensors and products.

    `folded`: weights of linear layers transposed and unnamed, the position table cut in two. `without`: no tensor with
    this in its name.
    """
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    tensors: dict[str, Any] = {"decoder.weight": torch.ones(3, 64)}
    nodes = []
    for number, (name, tensor) in enumerate(revert_weight_conversion(model, model.state_dict()).items()):
        bias = f"backbone.{name.removesuffix('weight')}bias"
        if without in name:
            continue
        if folded and name.endswith("position_embeddings"):
            tensors |= {"onnx::Concat_1": tensor[:, :1], "onnx::Reshape_2": tensor[:, 1:]}
        elif folded and name.endswith(".weight") and tensor.dim() == 2:
            tensors[f"onnx::MatMul_{number}"] = tensor.T
            product = f"product_{number}"
            nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [product]))
            nodes.append(onnx.helper.make_node("Add", [bias, product], [f"sum_{number}"]))
        else:
            tensors[f"backbone.{name}"] = tensor
    initializers = [onnx.numpy_helper.from_array(t.numpy().copy(), name) for name, t in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "exported", [], [], initializers)), file)


@pytest.mark.parametrize("folded", [True, False])
def test_converted_folder_is_the_same_model(folded: bool, tmp_path: Path) -> None:
    """The folder's features are those of the model that the file was written from; pictures are DINOv2's."""
    model = tiny_dinov2()
    write_onnx(model, tmp_path / "a.onnx", folded)
    main([str(tmp_path / "a.onnx"), str(tmp_path / "out")])
    again = AutoModel.from_pretrained(tmp_path / "out")
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == [0.485, 0.456, 0.406]


def write_quantized(file: Path) -> None:
    """As a quantizer leaves it: what products take is made of whole numbers."""
    write_onnx(tiny_dinov2(), file)
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    model = onnx.load(file)
    for one in model.graph.initializer:
        if one.name.startswith("onnx::MatMul"):
            model.graph.node.append(onnx.helper.make_node("DequantizeLinear", [f"{one.name}_int8", "s"], [one.name]))
            one.name += "_int8"
    onnx.save(model, file)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda file: None, "no such file"),
    "no ONNX": (lambda file: file.write_text("text"), "is no ONNX file, or damaged"),
    "no DINOv2": (lambda file: write_onnx(tiny_dinov2(), file, without="cls_token"), "it holds no DINOv2 by its names"),
    "no positions": (lambda file: write_onnx(tiny_dinov2(), file, without="position"), "position table is not found"),
    "no patches": (
        lambda file: write_onnx(tiny_dinov2(), file, without="patch"),
        r"no DINOv2 with plain layers in it \(2",
    ),
    "no MLP": (lambda file: write_onnx(tiny_dinov2(), file, without="mlp"), "no fc1: a DINOv2 with SwiGLU"),
    "quantized": (write_quantized, "is computed there, as in quantized files: take one in float32 or float16"),
    "not whole": (
        lambda file: write_onnx(tiny_dinov2(), file, without="layer.1.norm2"),
        "missing, and would be random: (?s:.*)layer.1.norm2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_without_a_whole_dinov2_is_refused(case: str, tmp_path: Path) -> None:
    """What is missing is said with the file, and nothing is written."""
    pytest.importorskip("onnx", reason=NEEDS_ONNX)
    write, message = WRONG[case]
    write(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=rf"{message}"):
        convert(tmp_path / "a.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_onnx_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra: where it is absent, the command names it."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'lingu-ray\[onnx\]'"):
        convert(tmp_path / "a.onnx", tmp_path / "out")
