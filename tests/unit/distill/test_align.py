"""The alignment: its objective in float64 by hand, and the image path of every family, cut below the last blocks."""

import math

import pytest
import torch
from families import FAMILIES, each
from tiny import tiny_teacher
from transformers import PreTrainedConfig

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.align import SHARPNESS, Choices, Labels, choose
from lingu_ray.distill.image_path import LowerBlocks, image_tokens, stand_in, tower_blocks
from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.distill.student import Student

IDS = [[5, 6, 7], [5, 8], [9], [5, 6, 7, 8, 9, 10]]


def reference_direction(weight_VD: torch.Tensor, answer: int) -> torch.Tensor:
    """u_a, token by token."""
    mean_D = weight_VD.mean(0)
    total_D = torch.zeros_like(mean_D)
    for token in IDS[answer]:
        having = sum(token in ids for ids in IDS)
        total_D += (math.log(len(IDS) / having) + 0.1) * (weight_VD[token] - mean_D)
    return total_D / total_D.norm()


def reference_terms(weight_VD, tokens: list[torch.Tensor], targets: list[tuple[int, int, list[int]]]):
    """Choice, nearness and size, summed, and the labels chosen; `targets`: picture, answer, candidates."""
    mean_D = weight_VD.mean(0)
    radius = sum((row - mean_D).norm() for row in weight_VD) / len(weight_VD)
    choice = nearness = 0
    chosen = []
    for picture, answer, candidates in targets:
        scores = {}
        for label in candidates:
            u_D = reference_direction(weight_VD, label)
            cosines = [(x - mean_D) @ u_D / (x - mean_D).norm() for x in tokens[picture]]
            scores[label] = torch.stack([SHARPNESS * c for c in cosines]).exp().sum().log()
            if label == answer:
                share_I = torch.stack([SHARPNESS * c.detach() for c in cosines]).softmax(0)
                for share, x in zip(share_I, tokens[picture], strict=True):
                    nearness += share * ((x - mean_D - radius * u_D) ** 2).sum() / radius**2
        choice += torch.stack(list(scores.values())).exp().sum().log() - scores[answer]
        chosen.append(max(scores, key=lambda label: scores[label]))
    size = sum((((x - mean_D).norm() / radius - 1) ** 2) / len(of) for of in tokens for x in of)
    return choice, nearness, size, chosen


def test_the_objective_is_the_formula():
    """Terms and gradients equal a slow float64 reading, for pictures with different numbers of tokens."""
    embedding = tiny_teacher().get_input_embeddings()
    weight_VD = embedding.weight.detach().double()
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 1, 5)
    token_KD = weight_VD.mean(0).float() + torch.randn(sum(sizes), weight_VD.shape[1], generator=generator)
    targets = [(0, 1, [0, 1, 2]), (0, 3, [1, 3]), (1, 2, [0, 1, 2, 3]), (2, 0, [0, 2])]
    labels = Labels(embedding, IDS)
    allowed_JU = torch.tensor([[label in candidates for label in range(4)] for _, _, candidates in targets])
    picture_J, answer_J = (torch.tensor([target[i] for target in targets]) for i in (0, 1))
    choices = Choices(picture_J, answer_J, allowed_JU, labels.directions(range(4)))
    picture_K = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))

    ours_KD, theirs_KD = token_KD.clone().requires_grad_(), token_KD.double().requires_grad_()
    found = choose(ours_KD, picture_K, choices, labels)
    choice, nearness, size, chosen = reference_terms(weight_VD, list(theirs_KD.split(sizes)), targets)
    assert found.label_J.tolist() == chosen
    for ours, theirs in ((found.choice, choice), (found.nearness, nearness), (found.size, size)):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    (found.choice + found.nearness + found.size).backward()
    (choice + nearness + size).backward()
    torch.testing.assert_close(ours_KD.grad.double(), theirs_KD.grad, rtol=1e-3, atol=1e-5)


def test_a_token_near_its_label_is_best():
    """The loss of tokens that are their label's vector is near 0, nearness and size exactly."""
    labels = Labels(tiny_teacher().get_input_embeddings(), [[5], [6], [7]])
    direction_UD = labels.directions([0, 1, 2])
    token_KD = labels.mean_D + labels.radius * direction_UD
    picture = torch.arange(3)
    found = choose(
        token_KD, picture, Choices(picture, picture, torch.ones(3, 3, dtype=torch.bool), direction_UD), labels
    )
    assert found.label_J.tolist() == [0, 1, 2] and float(found.choice) < 1e-3
    assert float(found.nearness) == pytest.approx(0, abs=1e-4) and float(found.size) == pytest.approx(0, abs=1e-6)


def _layers_read(config: PreTrainedConfig) -> list[int]:
    """The layers of its tower that a family reads, from the end: -1 is the last one, and LLaVA reads that before it."""
    read = getattr(config, "vision_feature_layers", getattr(config, "vision_feature_layer", -1))
    return [read] if isinstance(read, int) else read


@pytest.mark.parametrize("name", each())
def test_every_family_gives_its_image_tokens(name):
    """They are what the decoder gets in a real pass; without the lower blocks and pixels they are equal to the bit."""
    student = Student(FAMILIES[name].student(FAMILIES[name].teacher()))
    prompts = [FAMILIES[name].prompt(seed) for seed in range(3)]
    samples = [
        Sample("s", i, p.input_ids_T, torch.zeros_like(p.visual_T), p.visual_T, p.vision) for i, p in enumerate(prompts)
    ]
    batch = collate(samples, pad_id=2)
    inputs = ModelInputs(batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, batch.vision)
    taken = []
    hook = student.decoder.register_forward_pre_hook(
        lambda _, __, named: taken.append(named["inputs_embeds"]), with_kwargs=True
    )
    last = -min(_layers_read(student.model.config))
    lower = LowerBlocks(student, last)
    with torch.no_grad():
        student.body(**forward_arguments(student.body, inputs), use_cache=False)
        hook.remove()
        with lower.recorded() as kept:
            token_KD = image_tokens(student, inputs)
        assert torch.equal(token_KD, taken[0][inputs.visual_BT])
        light = ModelInputs(**vars(inputs) | {"vision": stand_in(inputs.vision)})
        with lower.left_out(kept):
            assert torch.equal(image_tokens(student, light), token_KD)
        assert torch.equal(image_tokens(student, inputs), token_KD), "all is as before"
    assert (len(lower.lower), len(tower_blocks(student))) == (2 - last, 2)
