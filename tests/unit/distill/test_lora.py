"""LoRA students: adapters where they belong, an export without a trace of them, and the adapted decoder's KV."""

import sys

import pytest
import torch
from families import QWEN3_MOE
from tiny import VOCABULARY, tiny_processor, tiny_student, tiny_teacher
from tinyrun import config
from torch import nn
from transformers import Idefics3ForConditionalGeneration, Qwen3MoeModel

from lingu_ray.config import LearningRates, LoraConfig, TrainConfig
from lingu_ray.cost.trace import LiveBytes
from lingu_ray.distill.donation import plan_donation
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.lora import add_adapters, is_adapter
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.export import export_model, exported_tensors
from lingu_ray.runtime.preparation import check_adapted
from lingu_ray.runtime.training.optimizer import make_optimizer, trained_parameters

LORA = LoraConfig(rank=4, alpha=6)


def batch():
    """Ids, samples, answers and images of two text rows."""
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    supervised[:, 12:] = True
    sample = torch.arange(2)[:, None].expand_as(ids)
    return ModelInputs(ids, sample, supervised, torch.zeros_like(supervised), {})


def adapted(train=True):
    """A student with adapters; trained ones differ from zero."""
    student = Student(tiny_student(tiny_teacher()))
    add_adapters(student.decoder, rank=4, alpha=6)
    if train:
        for name, parameter in student.model.named_parameters():
            if is_adapter(name):
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return student


def donated(student):
    """Final hidden states, and keys and values that the student donates."""
    inputs = batch()
    plan = plan_donation(
        inputs.input_ids_BT, inputs.sample_BT, inputs.supervised_BT, inputs.visual_BT,
        torch.tensor([True, True]), VOCABULARY,
    )  # fmt: skip
    with torch.no_grad():
        hidden, capture = student.hidden_states(inputs, plan)
    return hidden, capture.kv_L2CHE


def test_the_decoders_linear_layers_alone_are_adapted():
    """Every linear layer of the decoder has an adapter; the vision tower, with layers of the same names, has none."""
    student = adapted()
    with_adapter = {name.partition(".lora_")[0] for name, _ in student.model.named_parameters() if is_adapter(name)}
    plain = tiny_student(tiny_teacher())
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    decoder = {name for name in linear if name.startswith("model.text_model.")}
    assert with_adapter == decoder
    assert {name.rpartition(".")[2] for name in decoder} & {name.rpartition(".")[2] for name in linear - decoder}


def test_adapters_are_what_learns_in_the_decoder():
    """With vision frozen, projector and adapters have a gradient and change; base, embeddings and head do not."""
    student = adapted(train=False)
    plain, _ = donated(Student(tiny_student(tiny_teacher())))
    assert torch.equal(donated(student)[0], plain)  # new adapters change nothing
    rates = LearningRates(vision=0, projector=1e-3, decoder=1e-2)
    optimizer = make_optimizer(student, TrainConfig(learning_rates=rates, lora=LORA))
    names = {id(p): name for name, p in student.model.named_parameters()}
    learning = {names[id(p)] for p in trained_parameters(optimizer)}
    projector = {name for name, _ in student.parameter_groups()["projector"]}
    assert learning == {name for name in names.values() if is_adapter(name)} | projector
    assert learning == {name for name, p in student.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    for _ in range(2):  # the first step moves B alone, for it begins as zero
        student.hidden_states(batch())[0].square().sum().backward()
        optimizer.step()
    changed = {name for name, p in student.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in names.values() if is_adapter(name)}


def test_targets_are_kept_to_and_must_exist():
    """Only the named layers are adapted; a name that the decoder lacks is refused with those it has."""
    student = Student(tiny_student(tiny_teacher()))
    add_adapters(student.decoder, rank=4, alpha=6, targets=["v_proj"])
    adapters = [name for name, _ in student.model.named_parameters() if is_adapter(name)]
    assert len(adapters) == 2 * 3 and all(".v_proj." in name for name in adapters)
    with pytest.raises(UserError, match=r"no linear layer named w_proj; it has .*v_proj"):
        add_adapters(Student(tiny_student(tiny_teacher())).decoder, rank=4, alpha=6, targets=["w_proj"])


def test_export_is_merged(tmp_path):
    """The export has the original's class, configuration and names, and the logits of the live adapted model."""
    student, plain = adapted(), tiny_student(tiny_teacher())
    inputs = batch()
    with torch.no_grad():
        live = student.model(input_ids=inputs.input_ids_BT).logits
        assert not torch.allclose(live, plain(input_ids=inputs.input_ids_BT).logits, atol=0.1)
    export_model(student.model, tiny_processor(), torch.float32, tmp_path / "export", LORA)
    export, report = Idefics3ForConditionalGeneration.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(report.values())
    assert export.state_dict().keys() == plain.state_dict().keys()
    assert export.num_parameters() == plain.num_parameters()
    plain.save_pretrained(tmp_path / "plain")
    assert export.config.to_diff_dict() == type(plain).from_pretrained(tmp_path / "plain").config.to_diff_dict()
    with torch.no_grad():
        torch.testing.assert_close(export(input_ids=inputs.input_ids_BT).logits, live, rtol=1e-5, atol=1e-5)


def test_an_export_takes_no_copy_in_float32():
    """Beside the tensors that it gives, in bf16, there is one weight in float32, with what is added to it."""
    student = adapted()
    largest = max(p.numel() for p in student.decoder.layers.parameters())
    with LiveBytes() as live:
        tensors = exported_tensors(student.model, torch.bfloat16, LORA)
    assert live.now == sum({id(tensor): tensor.nbytes for tensor in tensors.values()}.values())
    assert live.now <= live.peak <= live.now + 3 * 4 * largest < 2 * live.now


def test_donated_kv_is_the_adapted_decoders(tmp_path):
    """What an adapted student donates equals what its merged export donates, and not what the base would."""
    student = adapted()
    _, kv = donated(student)
    export_model(student.model, tiny_processor(), torch.float32, tmp_path, LORA)
    _, merged = donated(Student(Idefics3ForConditionalGeneration.from_pretrained(tmp_path)))
    torch.testing.assert_close(kv, merged, rtol=1e-4, atol=1e-5)
    _, base = donated(Student(tiny_student(tiny_teacher())))
    assert not torch.allclose(kv, base, atol=0.1)


def test_missing_peft_is_said_with_its_cure(monkeypatch):
    """Without peft the error names what to install."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'lingu-ray\[lora\]'"):
        add_adapters(Student(tiny_student(tiny_teacher())).decoder, rank=4, alpha=6)


@pytest.mark.parametrize("what", [{"lora": {}}, {"parallelism": "fsdp2"}])
def test_a_frozen_decoder_is_refused(what):
    """Adapters and shards want a decoder that learns; the error names both settings."""
    with pytest.raises(ValueError, match=r"train\.(lora|parallelism=fsdp2) needs .* train\.learning_rates\.decoder"):
        TrainConfig.model_validate({"learning_rates": {"decoder": 0}, **what})


def test_experts_without_an_adapter_are_told(tmp_path, caplog):
    """Fused ones are no linear layers; it is said how much of the decoder they are, unless layers are named."""
    decoder = Qwen3MoeModel(QWEN3_MOE)
    add_adapters(decoder, rank=4, alpha=6)
    adapted = [name for name, _ in decoder.named_parameters() if is_adapter(name)]
    assert adapted and all(".self_attn." in name for name in adapted)
    for lora, told in ({"targets": ["q_proj"]}, False), ({}, True):
        check_adapted(config(tmp_path, tmp_path, train={"lora": lora}), Qwen3MoeModel(QWEN3_MOE))
        assert ("train.lora adapts no experts" in caplog.text) == told
    check_adapted(config(tmp_path, tmp_path, train={"lora": {}}), Student(tiny_student(tiny_teacher())).decoder)
    assert caplog.text.count("adapts no experts") == 1
