"""Every family of students goes through one suite: what KV sharing promises holds for each, in a tiny random pair."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import ray
import torch
from families import FAMILIES, PACKABLE, Prompt, each
from tiny import VOCABULARY, tiny_tokenizer
from transformers import AutoConfig

from lingu_ray.config import TeacherConfig
from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.continuation import TeacherRequest, make_request
from lingu_ray.distill.divergence import forward_kl
from lingu_ray.distill.donation import Donation, plan_donation, predicting
from lingu_ray.distill.head import output_head
from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.distill.loss import LossScales, TeacherOutput, ce_kd_loss
from lingu_ray.distill.pair import check_kind, compare_decoders
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.teacher.teachers import TeacherActor
from lingu_ray.runtime.teacher.transport import ObjectStore, from_bytes

ANSWER = 5


@cache
def pair(name: str):
    """Teacher, and a student whose decoder holds the teacher's weights."""
    teacher = FAMILIES[name].teacher()
    return teacher, Student(FAMILIES[name].student(teacher))


def sample(prompt: Prompt, position: int) -> Sample:
    """A prompt whose last tokens are the answer."""
    supervised_T = torch.arange(len(prompt.input_ids_T)) >= len(prompt.input_ids_T) - ANSWER
    return Sample("s", position, prompt.input_ids_T, supervised_T, prompt.visual_T, prompt.vision)


def texts(name: str) -> list[Sample]:
    """Ragged text."""
    return [sample(FAMILIES[name].text(seed, length), seed) for seed, length in enumerate((24, 11, 30))]


def mixed(name: str) -> list[Sample]:
    """Text, one image, two images of different sizes where the family has them."""
    family = FAMILIES[name]
    prompts = [family.prompt(1), family.text(2, 17), family.prompt(3, images=2), family.prompt(4)]
    return [sample(prompt, position) for position, prompt in enumerate(prompts)]


@dataclass
class Seen:
    """What teacher and student say at the judged positions, and how it was asked."""

    teacher_MD: torch.Tensor
    student_MD: torch.Tensor
    request: TeacherRequest
    plan: Donation


def ask(name: str, samples: list[Sample], packing: bool = False, **plan_options) -> Seen:
    """Let the student read the samples and the teacher continue."""
    teacher, student = pair(name)
    batch = collate(samples, pad_id=2, packing=packing)
    plan = plan_of(batch, **plan_options)
    hidden_BTD, capture = student.hidden_states(inputs(batch), plan)
    request = make_request(plan, capture)
    student_ND = hidden_BTD[predicting(batch.supervised_BT, batch.sample_BT)]
    return Seen(Teacher(teacher).hidden_states(request), student_ND[plan.kd_mask_N], request, plan)


@cache
def alone(name: str, samples: Callable[[str], list[Sample]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What student and teacher say of `texts` or `mixed` where each sample is a micro-batch of its own."""
    seen = [ask(name, [one]) for one in samples(name)]
    return torch.cat([one.student_MD for one in seen]).detach(), torch.cat([one.teacher_MD for one in seen])


def plan_of(batch: MicroBatch, **options) -> Donation:
    """All samples are distilled."""
    distilled = torch.ones(len(batch.sources), dtype=torch.bool)
    return plan_donation(
        batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, distilled, VOCABULARY, **options
    )


def inputs(batch: MicroBatch) -> ModelInputs:
    return ModelInputs(batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, batch.vision)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", each())
def test_text_only_identity(name):
    """Equal decoders on text alone: the teacher's states are the student's own, ragged rows and sliding windows too."""
    seen = ask(name, texts(name))
    close(seen.teacher_MD, seen.student_MD)
    assert seen.plan.tokens == 3 * ANSWER


@pytest.mark.parametrize("name", each())
@pytest.mark.parametrize("scope", ["full", "visual"])
@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
def test_identity_after_images(name, scope):
    """Equal decoders: the teacher goes on after images as the student does, by the family's positions and masks.

    Neither pass uses what the installed Transformers gives up.
    """
    if (name, scope) == ("paligemma2", "visual"):
        pytest.skip("its prompt text sees what follows it; a teacher that reads that text itself does not")
    seen = ask(name, mixed(name), scope=scope)
    close(seen.teacher_MD, seen.student_MD)


@pytest.mark.parametrize("name", each())
def test_image_reaches_the_teacher_through_kv(name):
    """Other pixels change what the teacher says, and the teacher's states differ from what it says of text alone."""
    image = FAMILIES[name].prompt(4)
    changed = {
        key: value.flip(-1) if value.is_floating_point() and value.ndim > 1 else value
        for key, value in image.vision.items()
    }
    one = ask(name, [sample(image, 0)])
    other = ask(name, [sample(Prompt(image.input_ids_T, image.visual_T, changed), 0)])
    assert not torch.allclose(one.teacher_MD, other.teacher_MD, atol=1e-3)


@pytest.mark.parametrize("name", each())
def test_batch_equals_single_samples(name):
    """Each sample alone gives what it gives in a padded batch of text and images."""
    together, (student_MD, teacher_MD) = ask(name, mixed(name)), alone(name, mixed)
    close(together.student_MD, student_MD)
    close(together.teacher_MD, teacher_MD)


@pytest.mark.parametrize("name", each(PACKABLE))
def test_packed_samples_do_not_see_each_other(name):
    """Packed into one row, every sample gives what it gives alone: masks, RoPE positions and windows start anew."""
    for samples in (texts, mixed):
        packed, (student_MD, teacher_MD) = ask(name, samples(name), packing=True), alone(name, samples)
        close(packed.student_MD, student_MD)
        close(packed.teacher_MD, teacher_MD)


@pytest.mark.parametrize("name", each())
def test_gradient_reaches_the_student_alone(name):
    """Neither KV nor hidden states carry a gradient; the loss reaches decoder, projector and tower of the student."""
    teacher, student = pair(name)
    batch = collate(mixed(name), pad_id=2)
    plan = plan_of(batch)
    hidden_BTD, capture = student.hidden_states(inputs(batch), plan)
    request = make_request(plan, capture)
    hidden_MD = Teacher(teacher).hidden_states(request)
    assert not request.kv_L2CHE.requires_grad and not hidden_MD.requires_grad
    predicts_BT = predicting(batch.supervised_BT, batch.sample_BT)
    labels_N = batch.input_ids_BT.roll(-1, 1)[predicts_BT]
    scales = LossScales(torch.full(labels_N.shape, 1.0), torch.ones(plan.tokens), temperature=2.0)
    noisy = TeacherOutput(hidden_MD + 0.1 * torch.randn_like(hidden_MD), output_head(teacher), plan.kd_mask_N)
    ce_kd_loss(hidden_BTD[predicts_BT], student.output_head, labels_N, scales, noisy, forward_kl).loss.backward()
    for group, named in student.parameter_groups().items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for _, p in named), group
    student.model.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in teacher.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", each())
def test_pair_is_found_to_fit_and_the_export_loads(name, tmp_path):
    """From the saved configurations alone the pair fits; saved and loaded again, the student is the same model."""
    teacher, student = pair(name)
    teacher.save_pretrained(tmp_path / "teacher")
    student.model.save_pretrained(tmp_path / "student")
    text = AutoConfig.from_pretrained(tmp_path / "student").get_text_config(decoder=True)
    check_kind(text, "student")
    compare_decoders(text, AutoConfig.from_pretrained(tmp_path / "teacher"))
    attention = FAMILIES[name].attention
    loaded = type(student.model).from_pretrained(tmp_path / "student", attn_implementation=attention)
    again = Student(loaded.eval())
    batch = collate(mixed(name), pad_id=2)
    assert torch.equal(again.hidden_states(inputs(batch))[0], student.hidden_states(inputs(batch))[0])


@pytest.mark.slow
def test_actor_returns_what_the_worker_does(ray_cluster, tmp_path):
    """In another process, loaded from disk and asked over the object store, each family's teacher says the same."""

    class Host:
        """Runs one teacher actor after another, which saves a process a family."""

        def hidden_states(self, settings, fields, shared):
            return TeacherActor(settings, torch.float32, "cpu", threads=1).hidden_states("object_store", fields, shared)

    host = ray.remote(num_cpus=0)(Host).remote()
    for name in FAMILIES:
        seen = ask(name, mixed(name))
        pair(name)[0].save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        settings = TeacherConfig(path=str(tmp_path / name))
        hidden = host.hidden_states.remote(settings, *ObjectStore().send(seen.request)())
        assert torch.equal(from_bytes(ray.get(hidden)), seen.teacher_MD), name


@pytest.mark.parametrize("name", each())
def test_padding_needs_no_mask(name):
    """Without a mask real tokens have the states that they have with one, and every parameter its gradient.

    Families that see ahead keep the mask.
    """
    _, student = pair(name)
    batch = collate(mixed(name), pad_id=2)
    real_BT = batch.sample_BT >= 0
    given = forward_arguments(student.body, inputs(batch))
    assert not real_BT.all() and (given["attention_mask"] is not None) == (name in ("gemma3", "paligemma2"))
    seen = []
    for mask_BT in (given["attention_mask"], real_BT.long()):
        hidden_BTD = student.body(**given | {"attention_mask": mask_BT}, use_cache=False).last_hidden_state
        hidden_BTD[real_BT].square().sum().backward()
        gradients = {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
        student.model.zero_grad(set_to_none=True)
        seen.append((hidden_BTD[real_BT].detach(), gradients))
    (without, gradients), (masked, expected) = seen
    torch.testing.assert_close(without, masked, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-3, atol=1e-3, msg=parameter)
