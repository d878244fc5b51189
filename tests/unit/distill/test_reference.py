"""The fast path against a decoder by hand: loss, CE and KD of every token, gradient of every parameter.

The samples are written by hand. `1 7 [9 4] I I I I 8` are ids; `[` and `]` stand around an answer, `{` and `}` around
one that the student sampled; `I` is a placeholder, four an image. The teacher knows the ids below 32 and no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from families import shake
from hypothesis import assume, given
from hypothesis import settings as drawing
from hypothesis import strategies as st
from reference_method import Objective, distillation_loss, teacher_logits, teacher_queries
from reference_pairs import ByHand, ByTransformers
from reference_runs import Comparison, Step, example, float64_throughout
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row

KNOWN, PLACEHOLDER, VOCABULARY = 32, 32, 36
PACKING = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])


@dataclass(frozen=True)
class Written:
    """A sample by hand. `judged`: the positions that are asked about, counted by hand; `source`: as in `WEIGHTS`."""

    line: str
    judged: list[int]
    source: str = "text"


W = Written
STEPS: dict[str, list[list[Written]]] = {
    "starts": [
        [
            W("1 7 12 9 [4 21 8]", [3, 4, 5]),  # the last prompt token is asked about, the answer's last token is not
            W("1 [9 4 17]", [0, 1, 2]),  # right after BOS: nothing is donated
            W("[9 4 17] 5 [6]", [0, 1, 3]),  # from the start: nothing predicts its first token
            W("1 7 12 [9]", [2]),  # of one token
            W("1 7 [9 4] 12 5 8", [1, 2]),  # text after the last answer: neither predicted nor seen
        ]
    ],
    "turns": [
        [
            W("1 7 [9 4] 12 5 [11] 6 3 [24 14 10]", [1, 2, 5, 8, 9, 10]),  # each answer is prompt of later ones
            W("1 7 [9 4] 12 5 8 11 6 [3 24]", [1, 2, 8, 9]),  # a turn between that is not supervised: prompt alone
            W("1 7 12 9 25 4", []),  # nothing is supervised: no part in the loss, nor in the counts
            W("1 13 7 [9 4] [22]", [2, 3, 4]),  # two answers without a token between are one
        ]
    ],
    "images": [
        [
            W("1 I I I I 7 I I I I 12 [9 4] 5 I I I I 8 [10]", [10, 11, 18]),  # several, in several turns
            W("1 I I I I 6 [3 24]", [], "pictures"),  # not distilled: CE alone
            W("1 14 [10]", [1]),  # text beside them
        ]
    ],
    "near images": [
        [
            W("1 I I I I I I I I 7 [9 4]", [9, 10]),  # adjacent images
            W("1 7 I I I I [9 4 6]", [6, 7]),  # an image before the answer: the teacher cannot be asked at its end
            W("1 7 [9 4 I I I I 6 8] 5 [3]", [1, 2, 8, 10]),  # an image in the midst of an answer; it is no label
        ]
    ],
    "unknown": [
        [
            W("1 33 7 [9 33 4 6]", [2, 3, 5]),  # donated in prompt and answer; it is predicted, and predicts nothing
            W("1 7 [33] 8 [5 35]", [1, 3, 4]),  # the whole answer, and its end
            W("1 34 [5]", []),  # before the answer: the teacher cannot be asked at all
        ]
    ],
    "sampled": [
        [
            W("1 I I I I 7 [9 4] 12 {6 3}", [5, 6, 8, 9]),  # KD alone, after an answer of the corpus
            W("1 5 {8 24}", [1, 2]),
            W("1 7 [10 4]", [1, 2]),
        ]
    ],
    "unlabeled": [[W("1 I I I I 7 {9 4}", [5, 6]), W("1 5 {8}", [1])]],  # no token of the step has a CE
    "micro-batches": [
        [W("1 7 12 [9 4 6 24 3]", [], "pictures"), W("1 I I I I 5 [14] 8 [10 3]", [5, 7, 8])],
        [W("1 I I I I 6 [3 24]", [], "pictures")],  # not distilled at all
        [W("1 4 [17]", [1])],
        [W("1 4 17 5", [])],  # nothing is supervised
    ],
    "a picture": [[W("1 I I I I 7 12 [9 4 6]", [6, 7, 8]), W("1 I I I I 8 [3]", [], "pictures")]],
}


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """All in float64."""
    encoder()  # what it imports must not meet other dtypes
    with float64_throughout():
        yield


def sample(written: Written, seed: int) -> Sample:
    """The sample that is written, its images random."""
    ids: list[int] = []
    supervised: list[bool] = []
    inside, sampled_from = False, None
    for mark in written.line.replace("[", "[ ").replace("]", " ]").replace("{", "{ ").replace("}", " }").split():
        if mark in "[]{}":
            inside = mark in "[{"
            sampled_from = len(ids) if mark == "{" else sampled_from
        else:
            ids.append(PLACEHOLDER if mark == "I" else int(mark))
            supervised.append(inside and mark != "I")
    visual_T = torch.tensor(ids) == PLACEHOLDER
    images = int(visual_T.sum()) // 4
    pixels = torch.randn(1, images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    vision = {"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, images, 32, 32).long()} if images else {}
    return Sample(written.source, 0, torch.tensor(ids), torch.tensor(supervised), visual_T, vision, sampled_from)


def step_of(name: str) -> Step:
    """The samples of this step."""
    return [[sample(written, seed) for seed, written in enumerate(group)] for group in STEPS[name]]


def pair(known: int = KNOWN, vocabulary: int = VOCABULARY, placeholder: int = PLACEHOLDER, tied: bool = True) -> Any:
    """A student and a teacher of the same kind of decoder, each with random weights of its own, in float64."""
    torch.manual_seed(0)
    text = {
        "vocab_size": known,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "pad_token_id": 2,
    }
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = LlamaForCausalLM(LlamaConfig(**text))
    config = Idefics3Config(
        text_config=lm.config.to_dict() | {"vocab_size": vocabulary},
        vision_config=eye | {"image_size": 32, "patch_size": 8, "initializer_range": 0.3},
        scale_factor=2,
        image_token_id=placeholder,
        pad_token_id=2,
        tie_word_embeddings=tied,
    )
    return shake(Idefics3ForConditionalGeneration(config)).double().eval(), shake(lm).double().eval()


@cache
def comparison(name: str, **kind: Any) -> Comparison:
    """The samples of this step by a pair of this kind."""
    return Comparison(*pair(**kind), ByHand, step_of(name))


@cache
def encoder() -> Encoder:
    """The project's own, whose tokenizer knows `tiny.VOCABULARY` ids and then the placeholder."""
    return Encoder(tiny.tiny_processor(), 160)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["images", "near images"])
def test_reference_is_the_model(name: str, tied: bool):
    """The decoder by hand, fed image features, is Transformers': logits, keys and values agree to 1e-10."""
    vlm, lm = pair(tied=tied)
    for one in [example(sample) for sample in step_of(name)[0]]:
        by_hand, cells = ByHand(vlm, lm).student(one)
        logits, memory = ByTransformers(vlm, lm).student(one)
        close(by_hand, logits)
        for cell, tensors in zip(cells, memory, strict=True):
            for part, tensor_HTE in enumerate(tensors):
                mine_HTE = torch.stack([torch.stack([head[part] for head in cell[p]]) for p in sorted(cell)], 1)
                torch.testing.assert_close(mine_HTE, tensor_HTE, rtol=0, atol=1e-10)


def close(actual: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    """Equal positions, equal logits to 1e-10."""
    assert actual.keys() == expected.keys()
    for position, logits_V in actual.items():
        torch.testing.assert_close(logits_V, expected[position], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective(earlier_turns="teacher"), Objective(scope="visual"), Objective(context="prompt_text")],
)
@pytest.mark.parametrize("name", ["turns", "near images"])
def test_both_references_continue_alike(name: str, objective: Objective):
    """The teacher by hand and the one by Transformers, which the families are compared with, say the same."""
    vlm, lm = pair()
    for one in [example(sample) for sample in step_of(name)[0]]:
        said = []
        for reference in (ByHand(vlm, lm), ByTransformers(vlm, lm)):
            _, memory = reference.student(one)
            said.append(teacher_logits(reference, one, memory, objective))
        close(*said)


@pytest.mark.parametrize("name", STEPS)
def test_judged_positions(name: str):
    """The positions with a KD term are those counted by hand, in the reference and in the plan of the library."""
    groups = comparison(name).plans(Objective())
    for group, written, plan in zip(step_of(name), STEPS[name], groups, strict=True):
        counted = [(row, p) for row, one in enumerate(written) for p in one.judged]
        distilled = [(row, example(one)) for row, one in enumerate(group) if one.source == "text"]
        assert [(row, p) for row, one in distilled for p in teacher_queries(one, "full", KNOWN)] == counted
        if plan is None:
            assert not counted
        else:
            rows, columns = plan.query_row_Q.tolist(), plan.query_column_Q.tolist()
            assert list(zip(rows, columns, strict=True)) == counted and plan.tokens == len(counted)


@PACKING
@pytest.mark.parametrize("scope", ["full", "visual"])
@pytest.mark.parametrize("name", STEPS)
def test_samples(name: str, scope: str, packing: bool):
    """Every step of `STEPS`, in both scopes and layouts."""
    comparison(name).agree(Objective(scope=scope), packing)


@PACKING
@pytest.mark.parametrize("name", ["turns", "near images", "unknown"])
def test_without_sharing(name: str, packing: bool):
    """The ablation: a teacher that reads the text alone, at the positions that the text has by itself."""
    comparison(name).agree(Objective(context="prompt_text"), packing)


@PACKING
@pytest.mark.parametrize("name", ["turns", "images", "sampled"])
def test_earlier_turns_by_the_teacher(name: str, packing: bool):
    """A teacher that computes a conversation's earlier answers itself, in place of the student's memory of them."""
    comparison(name).agree(Objective(earlier_turns="teacher"), packing)


@pytest.mark.parametrize("name", ["sampled", "unknown", "micro-batches"])
def test_kd_by_the_distilled_tokens(name: str):
    """KD divided by the tokens that have a KD term, in place of all supervised ones, the student's own included."""
    comparison(name).agree(Objective(kd_normalizer="distilled", w_kd=2.0))


@pytest.mark.parametrize("factor", [0.0, 0.2])
def test_cross_entropy_on_distilled_rows(factor: float):
    """`ce_on_distilled` scales the CE of distilled rows, and of no others."""
    comparison("micro-batches").agree(Objective(ce_on_distilled=factor, w_ce=1.3))


OBJECTIVES = st.builds(
    Objective,
    context=st.sampled_from(["shared_kv", "shared_kv", "prompt_text"]),
    scope=st.sampled_from(["full", "full", "visual"]),
    earlier_turns=st.sampled_from(["student", "teacher"]),
    divergence=st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),  # tv has no one gradient where both agree
    top_k=st.sampled_from([None, 3]),
    temperature=st.sampled_from([1.0, 1.7]),
    kd_normalizer=st.sampled_from(["supervised", "distilled"]),
    ce_on_distilled=st.sampled_from([1.0, 0.2]),
)
PIECES = st.sampled_from(["7", "34 12", "I I I I", "[9]", "[4 33 6]", "[17 I I I I 5]"])
LINES = st.lists(PIECES, min_size=1, max_size=5)
SOURCES = st.sampled_from(["text", "text", "pictures"])
GROUPS = st.lists(st.lists(st.tuples(LINES, SOURCES), min_size=1, max_size=3), min_size=2, max_size=3)


@pytest.mark.slow
@drawing(max_examples=12)
@given(GROUPS, OBJECTIVES, st.booleans(), st.sampled_from([1, 3]), st.integers(0, 2))
def test_any_step(drawn: list, objective: Objective, packing: bool, in_a_call: int, ahead: int):
    """Micro-batches of any rows, any settings together, asked about one by one or several in a call."""
    assume(any("[" in piece for group in drawn for line, _ in group for piece in line))
    written = [[W(" ".join(["1", *line]), [], source) for line, source in group] for group in drawn]
    step = [[sample(one, seed) for seed, one in enumerate(group)] for group in written]
    calls = {"micro_batches_per_call": in_a_call, "look_ahead": ahead}
    Comparison(*pair(), ByHand, step).agree(objective, packing, **calls)


@pytest.mark.parametrize("scope", ["full", "visual"])
def test_untied_heads(scope: str):
    """Both models with a head of its own, each term with its weight."""
    comparison("a picture", tied=False).agree(Objective(scope=scope, w_ce=0.5, w_kd=2.0, temperature=1.5))


@pytest.mark.parametrize(
    ("known", "temperature", "scope"),
    [
        (30, 1.0, "full"),
        (30, 1.5, "visual"),
        (36, 1.0, "visual"),
        (36, 1.5, "full"),
        (40, 1.0, "full"),
        (40, 1.5, "visual"),
    ],
)
def test_vocabularies(known: int, temperature: float, scope: str):
    """A teacher with fewer ids than the student, as many, and more: compared are those that both have.

    Where it has an id for the placeholder, that is still no query.
    """
    comparison("near images", known=known).agree(Objective(temperature=temperature, scope=scope))


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
def test_divergences(choice: dict[str, Any], temperature: float):
    """Each divergence, sharpened and flattened, over all ids or the teacher's top k and the rest as one."""
    comparison("a picture").agree(Objective(temperature=temperature, **choice))


def test_encoded_conversation():
    """Samples of the project's own encoder: two turns about a picture that are distilled, and a text that is not."""
    turns = ("<image>or?", "Odd.", "Sure?", "Yes.")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    rows = [Row("text", 0, messages, [tiny.picture(1)], False), Row("pictures", 1, messages[2:], [], False)]
    known = tiny.VOCABULARY
    models = pair(known=known, vocabulary=known + len(tiny.ADDED), placeholder=known)
    compared = Comparison(*models, ByHand, [[encoder().encode(row) for row in rows]])
    compared.agree(Objective())
    compared.agree(Objective(), packing=True)


def test_agreement_costs_nothing():
    """A teacher with the weights of the student's decoder: on texts every KD term of the reference is 0."""
    by_hand = ByHand(*pair())
    by_hand.teacher_decoder = by_hand.decoder
    examples = [example(sample) for sample in step_of("turns")[0]]
    read = [by_hand.student(one) for one in examples]
    said = [teacher_logits(by_hand, one, memory, Objective()) for one, (_, memory) in zip(examples, read, strict=True)]
    result = distillation_loss(examples, [logits for logits, _ in read], said, Objective())
    assert len(result.kd) == len(result.ce) and max(map(abs, result.kd)) < 1e-12
