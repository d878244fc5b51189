"""The Transformers engine against slow, independent references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import picture, tiny_student, tiny_teacher
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from lingu_ray.distill.head import OutputHead
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engine import GenerateRequest, ScoreRequest
from lingu_ray.evaluation.transformers_engine import TransformersEngine, cut, encode_pairs, windows

TEXTS = [
    ("The assignment statement", " binds names to values."),
    ("A list is ", "a mutable sequence"),
    ("Spaces at the end  ", "go to the continuation."),
    ("", "A text from its first token on; it is longer than the others, so that rows are padded."),
    ("   ", "only blanks before"),
    ("for", " x"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved teacher and student."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_teacher(folder=folder / "teacher")
    tiny_student(teacher, folder=folder / "student")
    return {name: folder / name for name in ("teacher", "student")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of three random pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return sorted(folder.iterdir())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    return tokenizer


def reference_loglik(folder: Path, context: str, continuation: str) -> float:
    """One text at a time, the whole model in float64, softmax written out."""
    if folder.name == "teacher":
        model = AutoModelForCausalLM.from_pretrained(folder).double()
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder).double()
    tokenizer = load_tokenizer(folder)
    stripped = context.rstrip()
    before = tokenizer.encode(stripped, add_special_tokens=False)
    ids = tokenizer.encode(context + continuation, add_special_tokens=False)
    scored = len(ids) - len(before)
    if not before:
        ids = [tokenizer.bos_token_id, *ids]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    total = 0.0
    for place in range(len(ids) - scored, len(ids)):
        weights = torch.exp(logits[place - 1])
        total += torch.log(weights[ids[place]] / weights.sum()).item()
    return total


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_batched_loglikelihoods_equal_the_slow_reference(folders: dict[str, Path], name: str) -> None:
    """Ragged batches through decoder and head give what each text alone gives in float64, for both kinds of model."""
    engine = TransformersEngine(folders[name], tokens_per_batch=60)
    scores = engine.loglikelihoods([ScoreRequest(*pair) for pair in TEXTS], "test")
    expected = [reference_loglik(folders[name], *pair) for pair in TEXTS]
    assert [s.loglik for s in scores] == pytest.approx(expected, abs=1e-3, rel=1e-5)
    assert all(s.tokens > 0 for s in scores)


def test_scores_do_not_depend_on_the_token_budget(folders: dict[str, Path]) -> None:
    """One text a batch and all in one batch give the same scores, in the order of the requests."""
    requests = [ScoreRequest(*pair) for pair in TEXTS]
    one = TransformersEngine(folders["teacher"], 1).loglikelihoods(requests, "test")
    together = TransformersEngine(folders["teacher"], 10_000).loglikelihoods(requests, "test")
    assert [s.loglik for s in one] == pytest.approx([s.loglik for s in together], abs=1e-3)
    assert [s.tokens for s in one] == [s.tokens for s in together]


def test_teacher_and_student_cut_text_into_the_same_tokens(folders: dict[str, Path]) -> None:
    """The student's added tokens do not change how plain text is tokenised."""
    requests = [ScoreRequest(*pair) for pair in TEXTS]
    of_teacher, of_student = (encode_pairs(load_tokenizer(folders[name]), requests) for name in ("teacher", "student"))
    assert of_teacher == of_student


def test_only_scored_positions_reach_the_head(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The output head sees as many rows as there are continuation tokens: no logits for contexts or padding."""
    engine = TransformersEngine(folders["teacher"], 10_000)
    rows: list[int] = []
    logits = OutputHead.logits
    monkeypatch.setattr(OutputHead, "logits", lambda head, hidden: rows.append(len(hidden)) or logits(head, hidden))
    scores = engine.loglikelihoods([ScoreRequest(*pair) for pair in TEXTS], "test")
    assert sum(rows) == sum(s.tokens for s in scores)


def test_long_texts_are_scored_in_windows_each_token_once(folders: dict[str, Path]) -> None:
    """A text beyond the context is the sum over windows that the reference makes one token at a time."""
    engine = TransformersEngine(folders["teacher"], 10_000)
    engine.max_length = 16
    text = "Names refer to objects. Names are introduced by name binding operations. " * 2
    score = engine.loglikelihoods([ScoreRequest("", text)], "test")[0]
    ((context_ids, text_ids),) = encode_pairs(engine.tokenizer, [ScoreRequest("", text)])
    assert score.tokens == len(text_ids) > 32
    ids = context_ids + text_ids
    expected = 0.0
    for begin in range(1, len(ids), 16):
        end = min(begin + 16, len(ids))
        first = max(0, end - 17)
        with torch.no_grad():
            logits = engine.model(input_ids=torch.tensor([ids[first : end - 1]])).logits[0].double()
        for place in range(begin, end):
            expected += torch.log_softmax(logits[place - 1 - first], -1)[ids[place]].item()
    assert score.loglik == pytest.approx(expected, abs=1e-3)


def test_windows_keep_what_fits_and_cut_the_beginning_of_a_long_context() -> None:
    """A pair that fits is one window; a long context loses its beginning, no scored token is lost."""
    (whole,) = windows(0, [1, 2], [3, 4], max_length=3)
    assert whole.ids == (1, 2, 3, 4) and whole.scored == 2
    (cut_short,) = windows(0, [1, 2, 3, 4, 5], [6, 7], max_length=3)
    assert cut_short.ids == (4, 5, 6, 7) and cut_short.scored == 2


def test_batches_keep_the_token_budget() -> None:
    """Every index once, padded tokens within the budget, but for a text that is longer by itself."""
    lengths = [5, 3, 9, 1, 30, 4, 4]
    batches = list(cut(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 16 for b in batches)


def test_batched_answers_equal_those_given_one_at_a_time(folders: dict[str, Path], pictures: list[Path]) -> None:
    """Left padding and shared batches change no greedy answer; the reference goes through the processor itself."""
    requests = [
        GenerateRequest("What is it?", (pictures[0],)),
        GenerateRequest("Compare the two pictures, please: which is brighter?", (pictures[1], pictures[2])),
        GenerateRequest("First <image> then <image>: same?", (pictures[2], pictures[0])),
    ]
    engine = TransformersEngine(folders["student"], 10_000)
    answers = engine.generate(requests, 8, "test")
    processor = AutoProcessor.from_pretrained(folders["student"])
    prompts = [
        "<|im_start|>User:<image>What is it?<end_of_utterance>\nAssistant:",
        "<|im_start|>User:<image><image>Compare the two pictures, please: which is brighter?"
        "<end_of_utterance>\nAssistant:",
        "<|im_start|>User: First <image> then <image>: same?<end_of_utterance>\nAssistant:",
    ]
    for request, prompt, answer in zip(requests, prompts, answers, strict=True):
        images = [Image.open(path).convert("RGB") for path in request.images]
        inputs = processor(text=prompt, images=images, add_special_tokens=False, return_tensors="pt")
        ends = [processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")]
        output = engine.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=ends)
        alone = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == alone.strip()
    assert len(set(answers)) > 1


def test_the_teacher_takes_no_images(folders: dict[str, Path], pictures: list[Path]) -> None:
    """A text-only model is known as such and refuses images by name."""
    engine = TransformersEngine(folders["teacher"], 1000)
    assert not engine.sees
    with pytest.raises(UserError, match="takes no images"):
        engine.generate([GenerateRequest("What?", (pictures[0],))], 4, "test")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(UserError, match=str(tmp_path)):
        TransformersEngine(tmp_path, 1000)


def test_a_diverged_model_is_refused(folders: dict[str, Path]) -> None:
    """NaN likelihoods stop the evaluation: they would be counted as the first option."""
    engine = TransformersEngine(folders["teacher"], 1000)
    torch.nn.init.constant_(engine.model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        engine.loglikelihoods([ScoreRequest("a", " b")], "test")


def test_a_question_beyond_the_context_is_refused(folders: dict[str, Path], pictures: list[Path]) -> None:
    """No prompt is cut silently: the error names the question."""
    engine = TransformersEngine(folders["student"], 1000)
    engine.max_length = 12
    with pytest.raises(UserError, match="What is in this picture"):
        engine.generate([GenerateRequest("What is in this picture?", (pictures[0],))], 4, "test")
