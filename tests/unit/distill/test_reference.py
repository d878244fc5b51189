"""The fast path against the reference of `reference_method`: loss, KD of every token, gradient of every parameter.

Both run in float64. The models are converted, and where Transformers and the loss cast to float32 for stability (norms,
RoPE, softmax), they are made to cast to float64. What is compared is therefore the method, to 1e-9, and not the
rounding of float32, which other tests deal with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_method import Decoder, Example, Objective, Result, distillation_loss, gradients, student_inputs
from tiny import ADDED, VOCABULARY, picture, tiny_processor, tiny_student, tiny_teacher
from tinyrun import settings
from torch import Tensor, nn

import lingu_ray.distill.loss as loss
import lingu_ray.distill.step as step
from lingu_ray.config import Config
from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import InProcessTeacher, Teacher
from lingu_ray.runtime.step import MicroBatches

SIZES = {"hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
Cut = Callable[[], list[list[Sample]]]
"""Samples of a step, by micro-batch."""
WEIGHTS = {  # by source; text is distilled under the policy `selective`
    "text": {"ce_weight": 0.7, "kd_weight": 1.2},
    "pictures": {"ce_weight": 1.5, "kd_weight": 1.0},
}


@pytest.fixture(scope="module", autouse=True)
def float64_throughout() -> Iterator[None]:
    """Casts to float32 become casts to float64."""
    encoder()  # what it imports must not meet other dtypes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        yield
    torch.set_default_dtype(torch.float32)


def pair(tied: bool = True, vocabulary: int = VOCABULARY) -> tuple[Any, Any]:
    """A student, and a teacher of other weights, so that they disagree, and of this vocabulary: copies of one pair."""
    return deepcopy(made_pair(tied, vocabulary))


@cache
def made_pair(tied: bool, vocabulary: int) -> tuple[Any, Any]:
    """What `pair` copies: making it takes longer."""
    vlm, lm = tiny_student(tiny_teacher(**SIZES)).double(), tiny_teacher(**SIZES, seed=7).double()
    lm.resize_token_embeddings(vocabulary, mean_resizing=False)
    if not tied:
        for seed, model in enumerate((vlm, lm)):
            head_VD = model.get_output_embeddings().weight
            noise_VD = torch.randn(head_VD.shape, generator=torch.Generator().manual_seed(seed))
            model.get_output_embeddings().weight = nn.Parameter(0.2 * noise_VD)
    return vlm, lm


@cache
def encoder() -> Encoder:
    """One for all tests: training its tokenizer takes a moment."""
    return Encoder(tiny_processor(), 160)


def talk(source: str, *turns: str, pictures: tuple[int, ...] = ()) -> Sample:
    """An encoded conversation: prompt, answer, prompt, answer …; `pictures` are seeds."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(turns)]
    return encoder().encode(Row(source, 0, messages, [picture(seed) for seed in pictures], False))


def text() -> list[list[Sample]]:
    """Two texts of unequal length in one micro-batch."""
    return [[talk("text", "Hi", "A tale."), talk("text", "And you?", "No.")]]


def image() -> list[list[Sample]]:
    """A picture that is distilled and one that is not."""
    return [
        [talk("text", "<image>Odd?", "Yes.", pictures=(1,)), talk("pictures", "<image>Even?", "No.", pictures=(2,))]
    ]


def several_images() -> list[list[Sample]]:
    """Three pictures in two turns, after a text that has none."""
    turns = ("<image>or<image>?", "First.", "<image>So?", "Third.")
    return [[talk("text", "Hi", "You."), talk("text", *turns, pictures=(3, 4, 5))]]


def turns() -> list[list[Sample]]:
    """Three answers in one conversation: earlier answers are part of the prompt of later ones."""
    return [[talk("text", "Hi", "Hello.", "Sure?", "Yes.", "Why?", "So."), talk("text", "A", "Be.")]]


def mixed() -> list[list[Sample]]:
    """Three micro-batches: mixed, not distilled at all, and a single picture."""
    return [
        [talk("pictures", "Say", "It is."), talk("text", "<image>Hm?", "Odd.", "Sure?", "Yes.", pictures=(1,))],
        [talk("pictures", "<image>Even?", "No.", pictures=(2,))],
        [talk("text", "<image>A?", "B.", pictures=(3,))],
    ]


def sampled() -> list[list[Sample]]:
    """The student's own answers: one after an answer of the corpus, one alone, and a text of the corpus."""
    return [
        [
            own(talk("text", "<image>Odd?", "Yes.", "Sure?", "Hm.", pictures=(1,))),
            own(talk("text", "Do", "It.")),
            talk("text", "Hi", "A tale."),
        ]
    ]


def unlabeled() -> list[list[Sample]]:
    """The student's own answers alone: no token of the step has a cross-entropy."""
    return [[own(talk("text", "<image>Odd?", "Yes.", pictures=(1,))), own(talk("text", "Do", "It."))]]


def own(sample: Sample) -> Sample:
    """The sample with its last answer as one of the student's own."""
    last = int((~sample.supervised_T).nonzero()[-1]) + 1
    return replace(sample, sampled_from=last)


def unknown() -> list[list[Sample]]:
    """Answers with a token that the teacher does not have."""
    return [[talk("text", "Hi", "A<global-img>b."), talk("text", "Do", "<global-img>", "It", "C")]]


def example(sample: Sample) -> Example:
    """The sample in the reference's terms."""
    return Example(
        ids=sample.input_ids_T.tolist(),
        supervised=sample.supervised_T.tolist(),
        visual=sample.visual_T.tolist(),
        distilled=sample.source == "text",
        sampled_from=sample.sampled_from,
        vision=sample.vision,
        **WEIGHTS[sample.source],
    )


@cache
def reference(cut: Cut, objective: Objective, **kind: Any) -> tuple[Result, dict[str, Tensor]]:
    """Result and gradients by the reference; `kind` as `pair` takes it."""
    vlm, lm = pair(**kind)
    result = distillation_loss(vlm, lm, [example(sample) for group in cut() for sample in group], objective)
    return result, gradients(vlm, result.loss)


def fast(cut: Cut, objective: Objective, packing: bool, **kind: Any) -> tuple[Result, dict[str, Tensor]]:
    """The same by the library: an optimizer step of these micro-batches."""
    vlm, lm = pair(**kind)
    distill = asdict(objective)
    teacher = {name: distill.pop(name) for name in ("context", "scope", "earlier_turns")}
    tree = settings(Path(), Path(), teacher=teacher, distill=distill)
    for source in tree["corpus"]["sources"]:
        source |= WEIGHTS[source["name"]]
    micro_batches = MicroBatches(
        Config.model_validate(tree), Student(vlm), InProcessTeacher(Teacher(lm)), torch.device("cpu")
    )
    batches = [collate(group, encoder().pad_id, packing) for group in cut()]
    plans = [micro_batches.plan(batch) for batch in batches]
    terms: list[loss.LossTerms] = []

    def record(*inputs: Any) -> loss.LossTerms:
        terms.append(loss.ce_kd_loss(*inputs))
        return terms[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "ce_kd_loss", record)
        patch.setattr(loss, "_CHUNK_ELEMENTS", 5 * len(vlm.lm_head.weight))  # several chunks of tokens
        sums = micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
    result = Result(
        loss=torch.tensor(sums.loss),
        ce=[value for part in terms for value in part.ce_N],
        kd=[value for part in terms for value in part.kd_M],
    )
    return result, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in vlm.named_parameters()}


def compare(cut: Cut, objective: Objective, packing: bool = False, **kind: Any) -> None:
    """Both paths have to agree on the loss, on every token and on every gradient."""
    expected, expected_gradients = reference(cut, objective, **kind)
    found, found_gradients = fast(cut, objective, packing, **kind)
    assert min(expected.kd) > 1e-4, "the teacher has to disagree, or the comparison shows nothing"
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found.loss, expected.loss.detach(), **close)
    torch.testing.assert_close(found.ce, [value.detach() for value in expected.ce], **close)
    torch.testing.assert_close(found.kd, [value.detach() for value in expected.kd], **close)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cut", [text, image, several_images])
def test_reference_is_the_model(cut, tied):
    """The reference's decoder, fed image features, is Transformers': logits, keys and values agree to 1e-10."""
    vlm, _ = pair(tied)
    decoder = Decoder(vlm, "model.text_model.", vlm.config.text_config)
    for sample in cut()[0]:
        memory = decoder.empty_memory()
        hidden = decoder.read(student_inputs(vlm, decoder, example(sample)), memory)
        output = vlm(input_ids=sample.input_ids_T[None], use_cache=True, **sample.vision)
        logits_TV = torch.stack([decoder.head_VD @ hidden[position] for position in sorted(hidden)])
        torch.testing.assert_close(logits_TV, output.logits[0], rtol=0, atol=1e-10)
        for cells, layer in zip(memory, output.past_key_values.layers, strict=True):
            for part, tensor_HTE in enumerate((layer.keys[0], layer.values[0])):
                mine_HTE = torch.stack([torch.stack([head[part] for head in cells[p]]) for p in sorted(cells)], 1)
                torch.testing.assert_close(mine_HTE, tensor_HTE, rtol=0, atol=1e-10)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("scope", ["full", "visual"])
@pytest.mark.parametrize("cut", [text, image, several_images, turns, mixed, sampled, unlabeled, unknown])
def test_samples(cut, scope, packing):
    """One or several texts, images, turns and micro-batches; answers of its own; unknown tokens; scopes; layouts."""
    compare(cut, Objective(scope=scope), packing=packing)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cut", [turns, unknown])
def test_without_sharing(cut, packing):
    """The ablation: a teacher that reads the text alone, at the positions that the text has by itself."""
    compare(cut, Objective(context="prompt_text"), packing=packing)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cut", [turns, sampled])
def test_earlier_turns_by_the_teacher(cut, packing):
    """A teacher that computes a conversation's earlier answers itself, in place of the student's memory of them."""
    compare(cut, Objective(earlier_turns="teacher"), packing=packing)


@pytest.mark.parametrize("cut", [sampled, unknown])
def test_kd_by_the_distilled_tokens(cut):
    """KD divided by the tokens that have a KD term, in place of all supervised ones, the student's own included."""
    compare(cut, Objective(kd_normalizer="distilled", w_kd=2.0))


@pytest.mark.parametrize("factor", [0.0, 0.2])
def test_cross_entropy_on_distilled_rows(factor):
    """`ce_on_distilled` scales the CE of distilled rows, and of no others."""
    compare(mixed, Objective(ce_on_distilled=factor, w_ce=1.3))


@pytest.mark.parametrize("scope", ["full", "visual"])
def test_untied_heads(scope):
    """Both models with a head of its own, each term with its weight."""
    compare(image, Objective(scope=scope, w_ce=0.5, w_kd=2.0, temperature=1.5), tied=False)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("more", [-40, 0, 5])
def test_vocabularies(more, temperature):
    """A teacher with fewer ids than the student, as many, and more: compared are those that both have."""
    compare(image, Objective(temperature=temperature), vocabulary=VOCABULARY + len(ADDED) + more)


@pytest.mark.parametrize("temperature", [0.7, 3.0])
@pytest.mark.parametrize(
    "choice",
    [
        {"divergence": "forward_kl"},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd"},
        {"divergence": "jsd", "beta": 0.1},
        {"divergence": "tv"},
        {"divergence": "forward_kl", "top_k": 5},
        {"divergence": "reverse_kl", "top_k": 5},
        {"divergence": "jsd", "beta": 0.9, "top_k": 1},
        {"divergence": "tv", "top_k": 20},
    ],
    ids=lambda choice: "-".join(map(str, choice.values())),
)
def test_divergences(choice, temperature):
    """Each divergence, sharpened and flattened, over all ids or the teacher's top k and the rest as one."""
    compare(image, Objective(temperature=temperature, **choice))


def test_agreement_costs_nothing():
    """A teacher whose weights the student's decoder has: on texts every KD term of the reference is 0."""
    vlm, lm = tiny_student(tiny_teacher(**SIZES)).double(), tiny_teacher(**SIZES).double()
    result = distillation_loss(vlm, lm, [example(sample) for sample in turns()[0]], Objective())
    assert len(result.kd) == len(result.ce) and max(map(abs, result.kd)) < 1e-12
