"""Short rows on a CPU: their attention is in float32 where all else is in 16 bits, and only theirs."""

from collections.abc import Callable

import pytest
import torch
from tiny import VOCABULARY, tiny_student, tiny_teacher
from torch import Tensor, nn

from lingu_ray.distill import short_rows
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.short_rows import LONGEST, is_short
from lingu_ray.distill.student import Student


@pytest.fixture(scope="module")
def student() -> Student:
    return Student(tiny_student(tiny_teacher()))


def inputs(length: int) -> ModelInputs:
    """Two rows of text."""
    ids_BT = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    sample_BT, nothing_BT = torch.arange(2)[:, None].expand(2, length), torch.zeros_like(ids_BT, dtype=torch.bool)
    return ModelInputs(ids_BT, sample_BT, nothing_BT, nothing_BT, {})


def run(student: Student, length: int, bf16: bool) -> tuple[Tensor, Tensor]:
    """Hidden states, and the gradient of the first layer's projection of keys."""
    student.model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden_BTD, _ = student.hidden_states(inputs(length))
    hidden_BTD.float().square().mean().backward()
    gradient = student.layers[0].self_attn.k_proj.weight.grad
    assert gradient is not None
    return hidden_BTD.detach().float(), gradient.clone()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Dtypes of the queries that SDPA's function is called with for short rows."""
    seen: list[torch.dtype] = []
    usual = short_rows.in_float32

    def noted(attention: Callable, module: nn.Module, *states: Tensor, **more):
        def spied(module, query, *arguments, **more):
            seen.append(query.dtype)
            assert not torch.is_autocast_enabled("cpu")
            return attention(module, query, *arguments, **more)

        return usual(spied, module, *states, **more)

    monkeypatch.setattr(short_rows, "in_float32", noted)
    return seen


@pytest.mark.parametrize(
    ("length", "bf16", "in_float32"), [(LONGEST, True, True), (LONGEST + 1, True, False), (9, False, False)]
)
def test_only_short_rows_in_16_bits_are_computed_in_float32(student, calls, length: int, bf16: bool, in_float32: bool):
    """Every layer's attention, to the last position that counts as short."""
    run(student, length, bf16)
    assert calls == [torch.float32] * (len(student.layers) if in_float32 else 0)


def test_numbers_are_no_further_from_float32s_than_those_of_16_bits(student, monkeypatch: pytest.MonkeyPatch):
    """Hidden states and gradients, compared with a pass in float32."""
    exact = run(student, 64, bf16=False)
    ours = run(student, 64, bf16=True)
    monkeypatch.setattr(short_rows, "LONGEST", 0)
    bf16 = run(student, 64, bf16=True)
    for reference, one, other in zip(exact, ours, bf16, strict=True):
        error, usual = (one - reference).norm() / reference.norm(), (other - reference).norm() / reference.norm()
        assert 0 < error < 1.25 * usual


def test_where_rows_are_not_whole_or_not_on_a_cpu_nothing_changes():
    """A generated token reads a cache; a GPU has another kernel."""
    whole = torch.zeros(1, 2, 5, 8, dtype=torch.bfloat16)
    assert is_short(whole, whole)
    assert not is_short(whole[:, :, :1], whole)
    assert not is_short(whole.to("meta"), whole.to("meta"))
    assert not is_short(whole.double(), whole.double())


def test_output_has_the_dtype_of_the_model(student):
    """A model whose weights are bfloat16, without autocast: the next layer takes what attention gives."""
    half = Student(tiny_student(tiny_teacher()).bfloat16())
    hidden_BTD, _ = half.hidden_states(inputs(12))
    assert hidden_BTD.dtype is torch.bfloat16
