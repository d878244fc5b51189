"""An optimizer step: independent of how the batch is cut, and of gradient to the student alone."""

from typing import Any

import pytest
import torch
from tiny import tiny_processor
from tinyrun import config

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.models.load import load_student, load_teacher
from lingu_ray.runtime.teacher.transport import from_bytes, to_bytes
from lingu_ray.runtime.training.step import MicroBatches


def rows(data):
    """Ragged rows of both sources: short and long texts, one and two pictures, two turns."""
    say = lambda role, content: {"role": role, "content": content}  # noqa: E731
    images = [(data / f"{i}.png").read_bytes() for i in range(3)]
    return [
        Row("text", 0, [say("user", "Tell me."), say("assistant", "A longer story.")], [], True),
        Row("text", 1, [say("user", "And you, what do you say to all of this?"), say("assistant", "No.")], [], True),
        Row("pictures", 2, [say("user", "<image>Even?"), say("assistant", "It is odd.")], images[:1], False),
        Row("text", 3, [say("user", "<image><image>Compare."), say("assistant", "Both are noise."),
                        say("user", "Sure?"), say("assistant", "Quite sure.")], images[1:], True),
    ]  # fmt: skip


def step_of(data, budget, look_ahead=1, packing=False, of_a_call=1, frozen=(), **distill):
    """Loss, gradients and teacher after one step whose micro-batches hold at most `budget` tokens."""
    train = {"tokens_per_micro_batch": budget, "packing": packing}
    asked = {"look_ahead": look_ahead, "micro_batches_per_call": of_a_call}
    settings = config(data, data, distill=distill, teacher=asked, train=train)
    student = Student(load_student(settings.student))
    for group in frozen:
        for _, parameter in student.parameter_groups()[group]:
            parameter.requires_grad_(False)
    teacher = load_teacher(settings.teacher, torch.float32, torch.device("cpu"))
    micro_batches = MicroBatches(settings, student, teacher, torch.device("cpu"))
    encoder = Encoder(tiny_processor(), 160)
    batches = micro_batches.make([encoder.encode(row) for row in rows(data)], encoder.pad_id)
    plans = [micro_batches.plan(batch) for batch in batches]
    sums = micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
    gradients = {name: p.grad for name, p in student.model.named_parameters()}
    return len(batches), sums, gradients, teacher


@pytest.mark.slow
@pytest.mark.parametrize(
    "distill", [{}, {"policy": "all", "temperature": 2.0, "divergence": "jsd"}, {"policy": "none"}]
)
def test_cut_does_not_matter(data, distill):
    """Micro-batches one or several, padded or packed, the teacher asked for each or for some together, with look-ahead
    or without: the same loss, gradients and bytes of KV."""
    whole, sums, gradients, _ = step_of(data, 10_000, **distill)
    for look_ahead, packing, of_a_call in ((0, False, 1), (3, False, 1), (1, True, 1), (0, False, 2), (1, True, 9)):
        parts, cut_sums, cut_gradients, _ = step_of(data, 160, look_ahead, packing, of_a_call, **distill)
        assert cut_sums.kv_bytes == sums.kv_bytes
        assert whole == 1 and parts > 1
        assert cut_sums.loss == pytest.approx(sums.loss, rel=1e-5)
        assert cut_sums.kd == pytest.approx(sums.kd, rel=1e-4, abs=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_student_runs_ahead_of_an_actor_on_a_gpu_alone(data):
    """Each micro-batch ahead holds its activations: none without a teacher or with one in process; a setting wins."""
    settings = config(data, data)
    student = Student(load_student(settings.student))
    here = load_teacher(settings.teacher, torch.float32, torch.device("cpu"))
    actor: Any = object()
    cases = {("cuda", actor): 1, ("cuda", here): 0, ("cuda", None): 0, ("cpu", actor): 0, ("cpu", here): 0}
    for (device, teacher), ahead in cases.items():
        assert MicroBatches(settings, student, teacher, torch.device(device)).look_ahead == ahead
    asked = config(data, data, teacher={"look_ahead": 2})
    assert MicroBatches(asked, student, here, torch.device("cuda")).look_ahead == 2


def test_a_micro_batch_may_run_through_frozen_parts_alone(data):
    """With the decoder frozen, text-only micro-batches teach nothing, and those with images still do."""
    _, whole, gradients, _ = step_of(data, 10_000, frozen=("decoder",))
    parts, cut, cut_gradients, _ = step_of(data, 160, frozen=("decoder",))
    assert parts > 1 and cut.loss == pytest.approx(whole.loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (gradient is None) == ("text_model" in name or "lm_head" in name), name
        if gradient is not None:
            torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_gradient_reaches_the_student_alone(data):
    """The teacher has no gradient and its weights do not change; every part of the student has one."""
    before = load_teacher(config(data, data).teacher, torch.float32, torch.device("cpu")).model.state_dict()
    _, _, gradients, teacher = step_of(data, 10_000)
    assert all(gradient is not None for gradient in gradients.values())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())


def test_shared_kv_carries_no_gradient(data, monkeypatch):
    """With CE off, the KD gradient is that of a teacher answer held constant: nothing flows through donated KV."""
    constant = {}
    original = Teacher.submit

    def record(self, request):
        assert not request.kv_L2CHE.requires_grad
        answer = original(self, request)
        assert not answer.requires_grad
        constant.setdefault("answers", []).append(answer)
        return answer

    monkeypatch.setattr(Teacher, "submit", record)
    _, _, gradients, _ = step_of(data, 10_000, w_ce=0)
    replay = iter(constant["answers"])
    monkeypatch.setattr(Teacher, "submit", lambda self, request: next(replay).clone())
    _, _, held, _ = step_of(data, 10_000, w_ce=0)
    assert all(torch.equal(gradients[name], held[name]) for name in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(3, 2, 5), (), (2, 0, 4)])
def test_payload_round_trip(dtype, shape):
    """What the object store carries comes back with the same bytes, dtype and shape."""
    tensor = (torch.rand(shape) * 9).to(dtype)
    back = from_bytes(to_bytes(tensor))
    assert back.dtype == dtype and back.shape == tensor.shape and torch.equal(back, tensor)
