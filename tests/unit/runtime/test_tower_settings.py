"""A run with a pretrained vision tower begins with its weights and image processing; a bad one is refused before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinyrun import config, write_pair_and_data
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from lingu_ray.atomic import write_json
from lingu_ray.config import Config, VisionConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.check import check_pair
from lingu_ray.runtime.models.load import make_vision
from lingu_ray.runtime.models.towers import load_tower
from lingu_ray.runtime.preparation import prepare_initial_model
from lingu_ray.runtime.resume import check_models, check_settings
from lingu_ray.runtime.run_folder.folder import RunFolder

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGLIP = SiglipVisionConfig(**SIZES, intermediate_size=48)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
TOWERS: dict[str, tuple[Any, Any]] = {
    "siglip": (SIGLIP, SiglipImageProcessorPil()),
    "whole siglip": (
        SiglipConfig(text_config=TEXT | SPECIAL, vision_config=SIGLIP.to_dict()),
        SiglipImageProcessorPil(image_mean=[0.45, 0.45, 0.45]),
    ),
    "dinov2": (
        Dinov2Config(**SIZES, mlp_ratio=2),
        BitImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    ),
    "clip": (CLIPVisionConfig(**SIZES, intermediate_size=48, projection_dim=32), CLIPImageProcessorPil()),
}
MODEL, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, data, and a tower of each family."""
    folder = tmp_path_factory.mktemp("data")
    write_pair_and_data(folder)
    for name, (model, images) in TOWERS.items():
        torch.manual_seed(0)
        AutoModel.from_config(model).save_pretrained(folder / name)
        images.save_pretrained(folder / name)
    # as a processor of pictures and text is saved
    own = folder / "whole siglip" / PREPROCESSOR
    write_json(own.with_name("processor_config.json"), {"image_processor": json.loads(own.read_text())})
    own.unlink()
    return folder


def run_with(data: Path, output: Path, tower: Path, **vision: Any) -> Config:
    """The settings of a run that makes a new VLM with this tower, by cross-entropy."""
    student = {"path": None, "from_teacher": {"tower": str(tower), **vision}}
    return config(data, output, student=student, distill={"policy": "none"})


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_a_run_begins_with_the_tower(name: str, data: Path, tmp_path: Path) -> None:
    """The initial model is complete and loads; its tower is the file's, its processor has the tower's mean."""
    settings = run_with(data, tmp_path, data / name)
    folder = RunFolder(settings.run_dir)
    prepare_initial_model(settings, folder)
    vlm = AutoModelForImageTextToText.from_pretrained(folder.initial_model)
    assert vlm.config.model_type == ("llava" if name == "clip" else "idefics3")
    patch = vlm.get_encoder(modality="image").embeddings.patch_embedding.weight
    states = load_file(data / name / WEIGHTS)
    assert any(patch.equal(tensor) for tensor in states.values() if tensor.shape == patch.shape)
    processor = AutoProcessor.from_pretrained(folder.initial_model).image_processor
    assert list(processor.image_mean) == list(TOWERS[name][1].image_mean) and processor.do_convert_rgb


def test_sides_that_are_rounded_in_bfloat16_are_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three patches a side are told, four are exact everywhere."""
    for size in (32, 24):
        settings = VisionConfig(tower=str(data / "siglip"), image_size=size, pixel_shuffle=size // 8)
        assert load_tower(settings, make_vision(settings))
    assert [record.getMessage().partition(",")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "student.from_teacher.tower: 3 patches a side: in bfloat16"
    ]


def changed(part: str) -> Callable[[Path], None]:
    """Rename the tensors with this in their names."""

    def change(folder: Path) -> None:
        tensors = {key.replace(part, f"other.{part}"): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return change


def set_in(file: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file."""

    def change(folder: Path) -> None:
        before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(before | values))

    return change


MUTILATIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such file or folder"),
    "no model": (lambda folder: (folder / MODEL).unlink(), "there is no config.json in it"),
    "a language model": (set_in(MODEL, model_type="llama"), "llama is no SigLIP, DINOv2 or CLIP vision model"),
    "missing and left over": (
        changed("norm1"),
        "missing, and would be random: (?s:.*)norm1(?s:.*)left over: (?s:.*)norm1",
    ),
    "cut off": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]), "cut off or damaged"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors"),
    "quantized": (set_in(MODEL, quantization_config={"quant_method": "awq"}), r"are quantized \(awq\)"),
    "own code": (
        set_in(MODEL, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}),
        "comes with model code of its own .* take a model of a class that Transformers has",
    ),
    "adapter": (set_in("adapter_config.json", peft_type="LORA"), "holds an adapter"),
    "damaged preprocessor": (lambda folder: (folder / PREPROCESSOR).write_text("{"), "preprocessor_config.json is cut"),
    "black": (set_in(PREPROCESSOR, image_mean=[0, 0, 0]), r"picture of one color \(0, 0, 0\) becomes 0 everywhere"),
}


@pytest.mark.parametrize("mutilation", MUTILATIONS)
def test_a_bad_tower_is_refused_before_the_corpus(mutilation: str, data: Path, tmp_path: Path) -> None:
    """The setting, the folder and what is wrong with it are said, and no initial model is written."""
    mutilate, message = MUTILATIONS[mutilation]
    shutil.copytree(data / "dinov2", tmp_path / "tower")
    mutilate(tmp_path / "tower")
    settings = run_with(data, tmp_path / "runs", tmp_path / "tower")
    with pytest.raises(UserError, match=rf"^student\.from_teacher\.tower(?s:.*){message}") as told:
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    assert str(tmp_path / "tower") in str(told.value)
    assert not RunFolder(settings.run_dir).initial_model.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cohere", "cohere: its logits have a scale or soft cap"),
        ("gemma2", "gemma2: its logits have a scale or soft cap"),
        ("gpt_neox", r"gpt_neox: its decoder has no embed_tokens\.weight"),
        ("opt", r"opt: its decoder has no embed_tokens\.weight"),
        ("phi", "an output head without bias"),
        ("vit", r"^teacher\.path=.*: cannot be loaded as a causal LM"),
    ],
)
def test_a_teacher_that_no_vlm_can_be_made_of_is_refused(kind: str, message: str, data: Path, tmp_path: Path) -> None:
    """By its configuration: no weights are read."""
    AutoConfig.for_model(kind, num_hidden_layers=1).save_pretrained(tmp_path / "teacher")
    settings = run_with(data, tmp_path, data / "siglip")
    teacher = settings.teacher.model_copy(update={"path": str(tmp_path / "teacher")})
    with pytest.raises(UserError, match=message):
        check_pair(settings.model_copy(update={"teacher": teacher}))


@pytest.mark.slow
def test_a_run_keeps_its_tower(data: Path, tmp_path: Path) -> None:
    """A tower may be moved, and not changed, once something was trained; before, the initial model is made again."""
    shutil.copytree(data / "siglip", tmp_path / "a")
    settings = run_with(data, tmp_path / "runs", tmp_path / "a", pixel_shuffle=2)
    folder = RunFolder(settings.run_dir)
    prepare_initial_model(settings, folder)

    other = run_with(data, tmp_path / "runs", tmp_path / "a", pixel_shuffle=1)
    check_settings(other, folder)
    prepare_initial_model(other, folder)
    assert AutoModelForImageTextToText.from_pretrained(folder.initial_model).config.scale_factor == 1

    (folder.checkpoints / "step-00000004").mkdir(parents=True)
    write_json(folder.checkpoints / "step-00000004" / "state.json", {"step": 4, "validation_ce": None})
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = run_with(data, tmp_path / "runs", tmp_path / "b", pixel_shuffle=1)
    check_models(moved, folder)
    set_in(PREPROCESSOR, image_mean=[0.1, 0.1, 0.1])(tmp_path / "b")
    with pytest.raises(UserError, match=r"another model than student\.from_teacher\.tower=.*b is now"):
        check_models(moved, folder)


def test_a_tower_has_its_own_sizes() -> None:
    """Sizes beside a tower are refused by name; a random tower has the defaults of before."""
    with pytest.raises(ValueError, match="tower says hidden_size, layers itself"):
        VisionConfig(tower="owner/tower", hidden_size=64, layers=2)
    with pytest.raises(ValueError, match="tower_revision belongs to a tower"):
        VisionConfig(tower_revision="main")
    random = VisionConfig(layers=2)
    assert (random.image_size, random.patch_size, random.hidden_size, random.layers) == (512, 16, 768, 2)
    assert VisionConfig(**random.model_dump()) == random
    pretrained = VisionConfig(tower="s3://bucket//tower", image_size=112)
    assert pretrained.tower == "s3://bucket/tower" and VisionConfig(**pretrained.model_dump()) == pretrained
