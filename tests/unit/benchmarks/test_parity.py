"""The benchmark of parity lets rounding pass, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.pairs import PairName, named_pair
from benchmarks.parity import CPU, Steps, compared, is_close
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.teacher import Teacher

SIZES = {"rows": 2, "micro_batches": 2, "image_tokens": 4, "text_tokens": 4, "answer_tokens": 4}


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["tiny", "tiny-mrope"])
def test_a_teacher_that_gets_other_kv_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: PairName) -> None:
    """bf16 against float32 is close; the same step with the donated positions in another order, or with an answer that
    is not a number, is not."""
    torch.manual_seed(0)
    steps = Steps(SIZES, named_pair(pair), str(tmp_path))
    exact, rounded = steps.outcome("fp32", CPU), steps.outcome("bf16", CPU)
    row = compared("bf16", rounded, "fp32", exact, "bf16")
    assert is_close(row) and row["gradient_off"] > 0
    submit = Teacher.submit

    def mixed_up(self: Teacher, request: TeacherRequest) -> torch.Tensor:
        return submit(self, replace(request, kv_L2CHE=request.kv_L2CHE.flip(2)))

    monkeypatch.setattr(Teacher, "submit", mixed_up)
    assert not is_close(compared("other", steps.outcome("bf16", CPU), "bf16", rounded, "same"))
    assert not is_close(compared("nan", replace(rounded, kd=float("nan")), "bf16", rounded, "same"))
