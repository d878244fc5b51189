"""The exported model: names of its tensors as vLLM and published checkpoints have them, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors import safe_open
from tiny import tiny_processor, tiny_student, tiny_teacher
from transformers import AutoModelForImageTextToText, GenerationConfig

from lingu_ray.runtime.export import export_model

TOWERS = ("llava", "llava_next", "llava_onevision", "gemma3", "paligemma2")  # CLIP's and SigLIP's
OTHERS = ("idefics3", "smolvlm", "internvl3", "qwen2_vl", "mistral3")


def names_in(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weights."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("family", [*TOWERS, *OTHERS])
def test_transformers_loads_an_export_whole(family: str, tmp_path: Path) -> None:
    """Every tensor comes back as it was, none is missing or left over; what was loaded is exported alike."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    expected = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    export_model(student, tiny_processor(), torch.float32, tmp_path / "export")
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(info.values())
    found = loaded.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    export_model(loaded, tiny_processor(), torch.float32, tmp_path / "again")
    assert names_in(tmp_path / "again") == names_in(tmp_path / "export")


@pytest.mark.parametrize("family", TOWERS)
def test_towers_are_named_as_vllm_has_them(family: str, tmp_path: Path) -> None:
    """vLLM's CLIP and SigLIP keep all their weights in a `vision_model`, as the published checkpoints do."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    export_model(student, tiny_processor(), torch.float32, tmp_path / "export")
    of_tower = {name for name in names_in(tmp_path / "export") if "vision_tower" in name}
    assert of_tower and all(name.startswith("vision_tower.vision_model.") for name in of_tower)
    assert len(of_tower) == len(student.model.vision_tower.state_dict())


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_keep_the_names_of_transformers(family: str, tmp_path: Path) -> None:
    """What vLLM reads as Transformers writes it is not renamed."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    student.save_pretrained(tmp_path / "plain")
    export_model(student, tiny_processor(), torch.float32, tmp_path / "export")
    assert names_in(tmp_path / "export") == names_in(tmp_path / "plain")


def test_generation_ends_where_turns_end(tmp_path: Path) -> None:
    """Beside the model's own ends; said once, also when an export is exported again."""
    student, processor = tiny_student(tiny_teacher()), tiny_processor()
    own, turn = student.generation_config.eos_token_id, processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    for _ in range(2):
        export_model(student, processor, torch.float32, tmp_path / "export")
        assert GenerationConfig.from_pretrained(tmp_path / "export").eos_token_id == [own, turn]
