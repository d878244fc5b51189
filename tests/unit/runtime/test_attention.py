"""`train.attention`: flash attention is found by its own name, and refused where it cannot compute."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from families import FAMILIES, each
from torch import Tensor

from lingu_ray.config import TrainConfig
from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.donation import plan_donation
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster import gpus
from lingu_ray.runtime.cluster.gpus import check_attention, require_package, require_units
from lingu_ray.runtime.models.masks import sees_ahead
from lingu_ray.runtime.training.step import model_inputs

BF16 = {"precision": "bf16"}


ALL = (-1, -1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = ALL,
) -> Tensor:  # fmt: skip
    """What flash-attn computes, `[B, T, H, E]`, on a CPU; `window_size`: the first is how many keys back are seen."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    seen_TT = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if causal:
        seen_TT = seen_TT.tril()
    if window_size != ALL:
        seen_TT = seen_TT.triu(-window_size[0])
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, seen_TT, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = ALL,
) -> Tensor:  # fmt: skip
    """The same for sequences one after another, `[T, H, E]`."""
    sizes = cu_seqlens_q.diff().tolist()
    assert cu_seqlens_q.dtype == torch.int32 and max_seqlen_q == max_seqlen_k == max(sizes)
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    return torch.cat([attend(*(one[None] for one in part), softmax_scale, causal, window_size)[0] for part in parts])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that Transformers looks flash attention up by; a stand-in for the package, which needs a GPU."""
    names: list[str] = []

    def load(name: str, *_: Any, **__: Any) -> Any:
        names.append(name)
        return attend, attend_packed, None, flash._pad_input, flash._unpad_input

    monkeypatch.setattr(flash, "_loaded_implementation", None)
    monkeypatch.setattr(flash, "_lazy_imports", load)
    return names


@pytest.fixture
def reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks positions where samples begin in vain: on a GPU, the host would wait for it in every layer."""

    def refuse(position_ids: Tensor | None, batch_size: int) -> bool:
        raise AssertionError(f"reads {position_ids} back")

    monkeypatch.setattr(flash, "_is_packed_sequence", refuse)


SEEING_BACK = [name for name in FAMILIES if name not in ("gemma3", "paligemma2")]


@pytest.mark.parametrize("rows", ["one", "padded", "packed"])
@pytest.mark.parametrize("name", each(SEEING_BACK))
def test_the_student_computes_with_it(name: str, rows: str, asked: list[str], reads_nothing_back: None) -> None:
    """Hidden states and donated KV are those of PyTorch's attention, also of packed samples, which see only themselves;
    the package is looked up by its own name, and not by that of the attention that donates."""
    family, packing = FAMILIES[name], rows == "packed"
    prompts = [family.prompt(1), family.text(2, 24), family.prompt(4)][: 1 if rows == "one" else None]
    samples = [
        Sample("s", i, p.input_ids_T, torch.arange(len(p.input_ids_T)) > len(p.input_ids_T) - 5, p.visual_T, p.vision)
        for i, p in enumerate(prompts)
    ]
    inputs = model_inputs(collate(samples, pad_id=2, packing=packing))
    fields = (inputs.input_ids_BT, inputs.sample_BT, inputs.supervised_BT, inputs.visual_BT)
    plan = plan_donation(*fields, torch.ones(len(samples), dtype=torch.bool), teacher_vocabulary=10**6)
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        torch.manual_seed(0)
        model = family.student(family.teacher())
        model.get_decoder().config._attn_implementation_internal = attention  # the package would be asked for
        hidden_BTD, capture = Student(model.eval()).hidden_states(inputs, plan)
        assert capture is not None and capture.kv_L2CHE is not None
        found.append((hidden_BTD[inputs.sample_BT >= 0], capture.kv_L2CHE))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(asked) == {"flash_attention_2"}


def test_families_that_see_ahead_are_known() -> None:
    """They take token types, and flash attention would leave out what those say."""
    names = ("idefics3", "llava", "qwen2_vl", "gemma3", "paligemma2")
    models = {name: FAMILIES[name].student(FAMILIES[name].teacher()) for name in names}
    parameters = {name: inspect.signature(model.model.forward).parameters for name, model in models.items()}
    taking = {name for name, taken in parameters.items() if "token_type_ids" in taken}
    found = {name for name, model in models.items() if sees_ahead(model.config)}
    assert found == taking == {"gemma3", "paligemma2"}


@pytest.mark.parametrize(
    ("train", "use_gpu", "refused"),
    [
        ({}, False, False),
        ({"attention": "flash_attention_2"} | BF16, True, False),
        ({"attention": "flash_attention_2"} | BF16, False, True),
        ({"attention": "flash_attention_3"}, True, True),
    ],
)
def test_where_it_cannot_compute(train: dict[str, Any], use_gpu: bool, refused: bool) -> None:
    """In fp32, or on a CPU: the settings that it needs are named."""
    settings = TrainConfig.model_validate(train)
    if not refused:
        return check_attention(settings, use_gpu)
    with pytest.raises(UserError, match=r"train\.attention=flash.* set train\.precision=bf16, and have GPUs"):
        check_attention(settings, use_gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the package may be there")
def test_a_package_that_is_not_installed() -> None:
    """The attention, the node and what to do."""
    require_package("sdpa")
    with pytest.raises(UserError, match=r"train\.attention=flash_attention_2: .* install flash-attn on every node"):
        require_package("flash_attention_2")


def test_a_gpu_without_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn refuses a GPU older than Ampere, in the first step: it is named before, with what to do."""
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    for emulated in (False, True):
        supported = lambda including_emulation=True, old=emulated: including_emulation or not old  # noqa: E731
        monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
        assert require_units("sdpa") == ("Tesla T4" if emulated else None)
        if not emulated:
            require_units("flash_attention_2")
    with pytest.raises(UserError, match=r"train\.attention=flash_attention_2 needs .* has a Tesla T4: leave"):
        require_units("flash_attention_2")


@pytest.mark.parametrize(
    ("name", "precision", "warned"), [("Tesla T4", "bf16", True), ("Tesla T4", "fp32", False), (None, "bf16", False)]
)
def test_bf16_that_a_gpu_emulates(
    name: str | None, precision: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is slow and no error: a warning names the GPU, and the setting that takes what it computes in."""
    monkeypatch.setattr(gpus, "_check", lambda *_: name)
    monkeypatch.setattr(gpus.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    gpus.check_gpus({"GPU": 1}, precision=precision)
    assert ("train.precision=bf16: a Tesla T4 only emulates it" in caplog.text) == warned
