"""The exported model: names of its tensors as vLLM and published checkpoints have them, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from processors import PROCESSORS, processor_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_processor, tiny_student, tiny_teacher
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel

from lingu_ray.config import LoraConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.distill.lora import add_adapters
from lingu_ray.errors import UserError
from lingu_ray.runtime.models import export
from lingu_ray.runtime.models.export import export_model, exported_tensors, write_files
from lingu_ray.runtime.models.verify import answer, compare_weights, question
from lingu_ray.runtime.models.weights import load_whole

TOWERS = ("llava", "llava_next", "llava_onevision", "gemma3", "paligemma2")  # CLIP's and SigLIP's
OTHERS = ("idefics3", "smolvlm", "internvl3", "qwen2_vl", "mistral3")


def names_in(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weights."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def written(student: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Write what an export of the student holds, beside a processor that need not fit it; returns its tensors."""
    tensors = exported_tensors(student, torch.float32)
    write_files(student, tiny_processor(), tensors, torch.float32, folder)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TOWERS, *OTHERS])
def test_transformers_loads_an_export_whole(family: str, tmp_path: Path) -> None:
    """Every tensor comes back as it was, none is missing or left over; what was loaded is exported alike."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    expected = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    written(student, tmp_path / "export")
    loaded = load_whole(AutoModelForImageTextToText, "the export", str(tmp_path / "export"))
    compare_weights(loaded, expected)
    written(loaded, tmp_path / "again")
    assert names_in(tmp_path / "again") == names_in(tmp_path / "export")


@pytest.mark.parametrize("family", TOWERS)
def test_towers_are_named_as_vllm_has_them(family: str, tmp_path: Path) -> None:
    """vLLM's CLIP and SigLIP keep all their weights in a `vision_model`, as the published checkpoints do."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    written(student, tmp_path)
    of_tower = {name for name in names_in(tmp_path) if "vision_tower" in name}
    assert of_tower and all(name.startswith("vision_tower.vision_model.") for name in of_tower)
    assert len(of_tower) == len(student.model.vision_tower.state_dict())


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_keep_the_names_of_transformers(family: str, tmp_path: Path) -> None:
    """What vLLM reads as Transformers writes it is not renamed."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    student.save_pretrained(tmp_path / "plain")
    written(student, tmp_path / "export")
    assert names_in(tmp_path / "export") == names_in(tmp_path / "plain")


@pytest.mark.parametrize("added", [None, AddedToken("<|eot|>", special=True), AddedToken("<|eot|>")], ids=repr)
def test_generation_ends_where_turns_end(added: AddedToken | None, tmp_path: Path) -> None:
    """Beside the model's own ends; said once, also when an export is exported again; also where the token that ends a
    turn is none of the tokenizer's named ones, as Llama 3's `<|eot_id|>`, or not marked as special."""
    student, processor = tiny_student(tiny_teacher()), tiny_processor()
    own, turn = student.generation_config.eos_token_id, processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    if added is not None:
        turn = len(processor.tokenizer)
        processor.tokenizer.add_tokens([added])
        processor.chat_template = processor.chat_template.replace("<end_of_utterance>", added.content)
    for _ in range(2):
        write_files(student, processor, exported_tensors(student, torch.float32), torch.float32, tmp_path / "export")
        assert GenerationConfig.from_pretrained(tmp_path / "export").eos_token_id == [own, turn]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("template", ["own", "of the tokenizer", "none"])
def test_an_export_is_read_back_and_asked(dtype: torch.dtype, template: str, tmp_path: Path) -> None:
    """It loads with the trained weights, and its own chat template gives training's prompt, whoever brought it.

    Its configuration names the dtype of the weights, for the model and its parts.
    """
    student, processor = tiny_student(tiny_teacher()), tiny_processor()
    if template != "own":
        processor.chat_template = None
    if template == "none":
        processor.tokenizer.chat_template = None
    expected = {name: tensor.to(dtype) for name, tensor in student.state_dict().items()}
    assert export_model(student, processor, dtype, tmp_path / "export") > 0
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "export")
    assert loaded.dtype == dtype
    written = json.loads((tmp_path / "export" / "config.json").read_text("utf-8"))
    parts = (written, written["text_config"], written["vision_config"])
    assert {part["dtype"] for part in parts} == {str(dtype).removeprefix("torch.")}
    compare_weights(loaded, expected)
    again = AutoProcessor.from_pretrained(tmp_path / "export")
    assert question(again, Encoder(processor, 1))["input_ids"].shape[0] == 1


@pytest.mark.parametrize("family", PROCESSORS)
def test_every_family_is_asked_by_its_own_processor(family: str) -> None:
    """Its chat template gives training's prompt as users call it, and its model answers."""
    processor = processor_of(family)
    inputs = question(processor, Encoder(processor, 1))
    assert "pixel_values" in inputs
    answer(FAMILIES[family].student(FAMILIES[family].teacher()), inputs)


def test_a_tokenizer_that_ends_prompts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training leaves EOS out of its prompts; without it in `post_processor` nothing more is said."""
    processor = tiny_processor()
    processor.tokenizer.bos_token = None  # else the template writes it, and the tokenizer adds nothing
    eos, number = processor.tokenizer.eos_token, processor.tokenizer.eos_token_id
    ending = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, number)])
    processor.tokenizer.backend_tokenizer.post_processor = ending
    processor.save_pretrained(tmp_path)
    asked = question(processor, Encoder(processor, 1))["input_ids"][0]
    assert asked[-1] == number and "ends every prompt with EOS" in caplog.text
    caplog.clear()
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"post_processor": None}), "utf-8")
    cured = AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(question(cured, Encoder(cured, 1))["input_ids"][0], asked[:-1]) and not caplog.text


def test_generation_settings_do_not_change_the_question(tmp_path: Path) -> None:
    """Beams, several answers, sampling: kept in the export, which is asked greedily for one answer."""
    student = tiny_student(tiny_teacher())
    student.generation_config = GenerationConfig(num_beams=3, num_return_sequences=2, do_sample=True, temperature=0.7)
    export_model(student, tiny_processor(), torch.float32, tmp_path / "export")
    kept = GenerationConfig.from_pretrained(tmp_path / "export")
    assert (kept.num_beams, kept.num_return_sequences, kept.temperature) == (3, 2, 0.7)


def test_a_template_may_take_text_alone() -> None:
    """LLaVA 1.5's own template joins strings: it is asked in text, and the prompt is training's."""
    processor = processor_of("llava")
    before, processor.chat_template = (
        processor.chat_template,
        (
            "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] + ' ' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
        ),
    )
    try:
        inputs = question(processor, Encoder(processor, 1))
    finally:
        processor.chat_template = before
    assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("What is this? ASSISTANT:")


def broken_after(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    """Let `damage` befall each folder between writing and reading back, as a disk or a library would do it."""

    def write_and_damage(*arguments: Any) -> None:
        write_files(*arguments)
        damage(arguments[-1])

    monkeypatch.setattr(export, "write_files", write_and_damage)


def one_bit(folder: Path) -> None:
    """Change the last bit of one weight."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.connector.modality_projection.proj.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without_tensor(folder: Path) -> None:
    """Leave a weight out."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.connector.modality_projection.proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_template(folder: Path) -> None:
    """Another chat template."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}?")


def other_image_size(folder: Path) -> None:
    """Images give more features than the prompt has places for."""
    config = json.loads((folder / "config.json").read_text())
    config["scale_factor"] = 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_bit, "does not hold the trained model: 1 of .*modality_projection"),
        (without_tensor, "missing, and would be random: .*modality_projection"),
        (other_template, "does not give the prompt of training, .*Correct its chat_template"),
        (other_image_size, "of another shape: .*modality_projection"),
        (lambda folder: (folder / "config.json").unlink(), "does not load again"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "does not load again"),
    ],
)
def test_an_export_that_is_not_the_model_is_not_kept(
    damage: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happened to it on its way to the disk is said, and the folder of that name is as it was."""
    broken_after(monkeypatch, damage)
    with pytest.raises(UserError, match=message):
        export_model(tiny_student(tiny_teacher()), tiny_processor(), torch.float32, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_an_export_of_adapters_holds_their_sum(tmp_path: Path) -> None:
    """With LoRA, what is read back is W + alpha / rank · B A, computed here in float64, and no adapter."""
    student = tiny_student(tiny_teacher())
    lora = LoraConfig(rank=4, alpha=8)
    base = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    add_adapters(student.get_decoder(), rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    layer = student.get_decoder().layers[0].mlp.up_proj
    export_model(student, tiny_processor(), torch.float32, tmp_path / "export", lora)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "export").state_dict()
    assert loaded.keys() == base.keys()
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    expected = base[name].double() + 2 * layer.lora_B.default.weight.double() @ layer.lora_A.default.weight.double()
    torch.testing.assert_close(loaded[name].double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(loaded[name], base[name])
