"""Frozen weights that bf16 holds as they are: the same step to the bit in half of their memory, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, each
from saved import save_checkpoint
from test_on_a_gpu import CPU, batches, config_of, run
from tiny import tiny_processor, tiny_student, tiny_teacher
from torch import nn

from lingu_ray.config import LearningRates, LoraConfig, StudentConfig, TrainConfig
from lingu_ray.distill.lora import is_adapter
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState
from lingu_ray.runtime.checkpoints.contents import load_checkpoint
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import load_student
from lingu_ray.runtime.training import prepare as preparing
from lingu_ray.runtime.training.frozen import frozen_in_linear, place
from lingu_ray.runtime.training.optimizer import make_optimizer
from lingu_ray.runtime.training.prepare import prepare
from lingu_ray.runtime.training.step import MicroBatches

LORA = LoraConfig(rank=2, alpha=4)
FROZEN_TOWER = LearningRates(vision=0, projector=1e-3, decoder=1e-3)
ADAPTERS = TrainConfig(precision="bf16", lora=LORA, learning_rates=FROZEN_TOWER)
TENTH = 0.1  # which bf16 rounds


def as_published_in_bf16(student: Student) -> Student:
    """With weights that are loaded from bf16 files into float32."""
    for parameter in student.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return student


def trained(family: Family, train: TrainConfig) -> MicroBatches:
    """A student and its teacher, prepared on the CPU."""
    config = config_of(train=train.model_dump())
    teacher = family.teacher()
    student = as_published_in_bf16(Student(family.student(teacher)))
    prepare(student, config.train, CPU, seed=0)
    for name, parameter in student.model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    student.model.eval()  # without dropout
    return MicroBatches(config, student, Teacher(nn.Module.to(teacher, torch.bfloat16)), CPU)


@pytest.mark.parametrize("name", each())
def test_a_step_is_the_same_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of every family, text and images, with adapters and a frozen tower."""
    held = trained(FAMILIES[name], ADAPTERS)
    frozen = frozen_in_linear(held.student.model)
    assert len(frozen) > 10 and all(parameter.dtype == torch.bfloat16 for parameter in frozen)
    monkeypatch.setattr(preparing, "frozen_in_linear", lambda model: [])
    plain = trained(FAMILIES[name], ADAPTERS)
    for batch in batches(FAMILIES[name], packing=False):
        ours, theirs = run(held, batch), run(plain, batch)
        assert (ours.loss, ours.ce, ours.kd) == (theirs.loss, theirs.ce, theirs.kd)
    pairs = zip(held.student.model.named_parameters(), plain.student.model.named_parameters(), strict=True)
    gradients = [(key, ours.grad, theirs.grad) for (key, ours), (_, theirs) in pairs if theirs.grad is not None]
    assert len(gradients) > 10
    assert not [key for key, ours, theirs in gradients if ours is None or not ours.equal(theirs)]


def test_what_stays_in_float32() -> None:
    """What learns, what bf16 would change, embeddings and the head that is tied to them, norms, convolutions."""
    model = tiny_student(tiny_teacher())
    tied = model.get_output_embeddings().weight
    assert tied is model.get_input_embeddings().weight
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight is not tied]
    model.requires_grad_(False)
    learns, inexact, *exact = [module.weight for module in linear]
    learns.requires_grad_()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    inexact.data[0, 0] = TENTH
    place(model, CPU, frozen_in_linear(model))
    assert {parameter.dtype for parameter in exact} == {torch.bfloat16}
    of_linear = {id(parameter) for module in linear for parameter in module.parameters()}
    others = [learns, inexact, tied, *(p for p in model.parameters() if id(p) not in of_linear)]
    assert {parameter.dtype for parameter in others} == {torch.float32}


@pytest.mark.parametrize("name", each(name for name, one in FAMILIES.items() if one.modality == "image"))
def test_a_student_is_the_same_whatever_dtypes_it_is_loaded_in(name: str, tmp_path: Path) -> None:
    """Parameters, adapters among them, and buffers, to the bit: loaded as its files have them, and in float32. Of the
    files most is bf16, the first layer's float32, and a norm float16."""
    model = FAMILIES[name].student(FAMILIES[name].teacher()).bfloat16()
    layers = model.get_decoder().layers
    layers[0].float()
    layers[1].input_layernorm.half()
    model.save_pretrained(tmp_path)
    settings = StudentConfig(path=str(tmp_path))
    mapped, plain = (Student(load_student(settings, as_stored=stored)) for stored in (True, False))
    assert {p.dtype for p in mapped.model.parameters()} == {torch.bfloat16, torch.float32, torch.float16}
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
    for student in (mapped, plain):
        prepare(student, ADAPTERS, CPU, seed=0)
    for kind in ("named_parameters", "named_buffers"):
        for (key, ours), (_, theirs) in zip(getattr(mapped.model, kind)(), getattr(plain.model, kind)(), strict=True):
            assert ours.dtype == theirs.dtype and ours.equal(theirs), key
    assert {p.dtype for p in mapped.model.parameters()} == {torch.bfloat16, torch.float32}


def test_no_other_precision_holds_them() -> None:
    """In fp32 every weight stays float32."""
    student = as_published_in_bf16(Student(tiny_student(tiny_teacher())))
    prepare(student, ADAPTERS.model_copy(update={"precision": "fp32"}), CPU, seed=0)
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}


def test_checkpoints_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that held float32 is resumed, and gives the same export to the bit: adapters are merged in float32."""

    def student() -> Student:
        made = as_published_in_bf16(Student(tiny_student(tiny_teacher())))
        prepare(made, ADAPTERS, CPU, seed=0)
        return made

    held = student()
    monkeypatch.setattr(preparing, "frozen_in_linear", lambda model: [])
    plain = student()
    for name, parameter in plain.model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    save_checkpoint(tmp_path, plain.model, make_optimizer(plain, ADAPTERS), CheckpointState(3, None), 1)
    assert load_checkpoint(tmp_path, held.model, make_optimizer(held, ADAPTERS)) == CheckpointState(3, None)
    assert any(parameter.dtype == torch.bfloat16 for parameter in held.model.parameters())
    for name, of in (("held", held), ("plain", plain)):
        export_model(of.model, tiny_processor(), torch.float32, tmp_path / name, LORA)
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("held", "plain"))
    assert ours == theirs
