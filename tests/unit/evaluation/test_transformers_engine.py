"""The Transformers engine against slow, independent references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from tiny import picture, tiny_processor, tiny_student, tiny_teacher, tiny_tokenizer
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from lingu_ray.corpus.images import decode_image
from lingu_ray.distill.head import OutputHead
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import GenerateRequest, Score, ScoreRequest
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.evaluation.engines.prompts import Prompts
from lingu_ray.evaluation.engines.scoring import encode_pairs, first_ids, windows
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine, batches_within

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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    return tokenizer


def reference_score(folder: Path, context: str, continuation: str) -> Score:
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
    total, greedy = 0.0, True
    for place in range(len(ids) - scored, len(ids)):
        weights = torch.exp(logits[place - 1])
        total += torch.log(weights[ids[place]] / weights.sum()).item()
        greedy &= int(weights.argmax()) == ids[place]
    return Score(total, scored, greedy)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_batched_loglikelihoods_equal_the_slow_reference(folders: dict[str, Path], name: str) -> None:
    """Ragged batches through decoder and head give what each text alone gives in float64, for both kinds of model."""
    engine = TransformersEngine(folders[name], tokens_per_batch=60)
    scores = engine.loglikelihoods([ScoreRequest(*pair) for pair in TEXTS])
    expected = [reference_score(folders[name], *pair) for pair in TEXTS]
    assert [s.loglik for s in scores] == pytest.approx([e.loglik for e in expected], abs=1e-3, rel=1e-5)
    assert [(s.tokens, s.greedy) for s in scores] == [(e.tokens, e.greedy) for e in expected]


def test_bf16_is_the_same_but_for_rounding(folders: dict[str, Path]) -> None:
    """Scores in bfloat16 are near those in float32, which they do not equal; questions about images are answered."""
    requests = [ScoreRequest(*pair) for pair in TEXTS]
    full = TransformersEngine(folders["student"], 1000).loglikelihoods(requests)
    rounding = TransformersEngine(folders["student"], 1000, torch.bfloat16)
    assert {p.dtype for p in rounding.model.parameters()} == {torch.bfloat16}
    rounded = rounding.loglikelihoods(requests)
    ours, theirs = ([score.loglik for score in scores] for scores in (rounded, full))
    assert ours != theirs and ours == pytest.approx(theirs, rel=0.02)
    assert [score.tokens for score in rounded] == [score.tokens for score in full]
    assert len(rounding.generate([GenerateRequest("What is it?", (picture(0),), 8)])) == 1


def test_greedy_is_what_the_model_would_say(folders: dict[str, Path]) -> None:
    """The model's own continuation is greedy; with something before or after it, it is not."""
    engine = TransformersEngine(folders["teacher"], 1000)
    context, said = next(pair for word in topics["assignment"].split() for pair in own_words(engine, word))
    requests = [ScoreRequest(context, text) for text in (said, f"zq{said}", f"{said}zq")]
    assert [score.greedy for score in engine.loglikelihoods(requests)] == [True, False, False]


def own_words(engine: TransformersEngine, context: str) -> Iterator[tuple[str, str]]:
    """The context and three greedy tokens as a text, if that has the same tokens again."""
    tokenizer = engine.files.tokenizer
    ids = tokenizer(context, return_tensors="pt").input_ids
    said = engine.model.generate(ids, max_new_tokens=3, do_sample=False)[0].tolist()
    text = tokenizer.decode(said)
    if tokenizer(text).input_ids == said and len(said) == ids.shape[1] + 3:
        yield context, text.removeprefix(context)


def test_scores_do_not_depend_on_the_token_budget(folders: dict[str, Path]) -> None:
    """One text a batch and all in one batch give the same scores, in the order of the requests."""
    requests = [ScoreRequest(*pair) for pair in TEXTS]
    one = TransformersEngine(folders["teacher"], 1).loglikelihoods(requests)
    together = TransformersEngine(folders["teacher"], 10_000).loglikelihoods(requests)
    assert [s.loglik for s in one] == pytest.approx([s.loglik for s in together], abs=1e-3)
    assert [s.tokens for s in one] == [s.tokens for s in together]


def test_teacher_and_student_cut_text_into_the_same_tokens(folders: dict[str, Path]) -> None:
    """The student's added tokens do not change how plain text is tokenized."""
    requests = [ScoreRequest(*pair) for pair in TEXTS]
    of_teacher, of_student = (encode_pairs(load_tokenizer(folders[name]), requests) for name in ("teacher", "student"))
    assert of_teacher == of_student


def test_only_scored_positions_reach_the_head(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The output head sees as many rows as there are continuation tokens: no logits for contexts or padding."""
    engine = TransformersEngine(folders["teacher"], 10_000)
    rows: list[int] = []
    logits = OutputHead.logits
    monkeypatch.setattr(OutputHead, "logits", lambda head, hidden: rows.append(len(hidden)) or logits(head, hidden))
    scores = engine.loglikelihoods([ScoreRequest(*pair) for pair in TEXTS])
    assert sum(rows) == sum(s.tokens for s in scores)


def test_long_texts_are_scored_in_windows_each_token_once(folders: dict[str, Path]) -> None:
    """A text beyond the context is the sum over windows that the reference makes one token at a time."""
    engine = TransformersEngine(folders["teacher"], 10_000)
    engine.max_length = 16
    text = "Names refer to objects. Names are introduced by name binding operations. " * 2
    score = engine.loglikelihoods([ScoreRequest("", text)])[0]
    ((context_ids, text_ids),) = encode_pairs(engine.files.tokenizer, [ScoreRequest("", text)])
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


@pytest.mark.parametrize(
    ("template", "leading"),
    [("$A", []), ("<|im_start|> $A", ["<|im_start|>"]), ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"]),
     ("$A <|endoftext|>", []), ("<sop> $A <|endoftext|>", ["<sop>"])],
)  # fmt: skip
def test_what_the_tokenizer_puts_first_stays_first(template: str, leading: list[str]) -> None:
    """Whatever tokens these are, a context has them, an empty one, too; what it puts last is no part of a text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    special = [word for word in template.split() if word != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(word, tokenizer.convert_tokens_to_ids(word)) for word in special]
    )
    first, text = tokenizer.convert_tokens_to_ids(leading), tokenizer("a b c", add_special_tokens=False).input_ids
    context, continuation = encode_pairs(tokenizer, [ScoreRequest("a b", " c")])[0]
    assert context + continuation == first + text
    assert encode_pairs(tokenizer, [ScoreRequest("", "a b c")]) == [(first or [tokenizer.bos_token_id], text)]


def test_a_text_must_start_from_a_token() -> None:
    """The first token of a text is predicted from BOS, else from EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert first_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a BOS nor an EOS token to start a text from: name one in"):
        first_ids(tokenizer)


def test_options_of_one_token_are_computed_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are those of each alone; the decoder reads a question once, whatever its letters and their order."""
    engine = TransformersEngine(folders["teacher"], 200)
    questions = [f"{topics[name][:60]}\nAnswer:" for name in sorted(topics)[:6]]
    requests = [ScoreRequest(question, f" {letter}") for letter in "ABCD" for question in questions]
    alone = [engine.loglikelihoods([request])[0] for request in requests]
    rows: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: object, given: dict[str, torch.Tensor]) -> None:
        rows.extend(map(tuple, given["input_ids"].tolist()))

    handle = engine.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    together = engine.loglikelihoods(requests)
    handle.remove()
    assert len(rows) == len(questions)
    assert [s.loglik for s in together] == pytest.approx([s.loglik for s in alone], abs=1e-4)
    assert [replace(s, loglik=0) for s in together] == [replace(s, loglik=0) for s in alone]


def test_windows_keep_what_fits_and_cut_the_beginning_of_a_long_context() -> None:
    """A pair that fits is one window; a long context loses its beginning, no scored token is lost."""
    (whole,) = windows(0, [1, 2], [3, 4], max_length=3)
    assert whole.ids == (1, 2, 3, 4) and whole.scored == 2 and whole.cut_to == 0
    (cut_short,) = windows(0, [1, 2, 3, 4, 5], [6, 7], max_length=3)
    assert cut_short.ids == (4, 5, 6, 7) and cut_short.scored == 2 and cut_short.cut_to == 3


def test_batches_keep_the_token_budget() -> None:
    """Every index once, padded tokens within the budget, but for a text that is longer by itself."""
    lengths = [5, 3, 9, 1, 30, 4, 4]
    batches = list(batches_within(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 16 for b in batches)


TURN = "<end_of_utterance>"
ASKED = [
    (GenerateRequest("What is it?", (picture(0),), 8), f"<|im_start|>User:<image>What is it?{TURN}\nAssistant:"),
    (
        GenerateRequest("Compare the two pictures, please: which is brighter?", (picture(1), picture(2)), 12),
        f"<|im_start|>User:<image><image>Compare the two pictures, please: which is brighter?{TURN}\nAssistant:",
    ),
    (
        GenerateRequest("First <image> then <image>: same?", (picture(2), picture(0)), 8),
        f"<|im_start|>User: First <image> then <image>: same?{TURN}\nAssistant:",
    ),
    (GenerateRequest("No picture here.", max_new_tokens=12), f"<|im_start|>User: No picture here.{TURN}\nAssistant:"),
    (GenerateRequest("A text that goes on", max_new_tokens=30, chat=False), "A text that goes on"),
]


def answer_alone(engine: TransformersEngine, request: GenerateRequest, prompt: str) -> str:
    """One prompt through the processor itself and the model's own `generate`."""
    processor = AutoProcessor.from_pretrained(engine.files.path)
    images = [decode_image(image) for image in request.images]
    inputs = processor(text=prompt, images=images or None, add_special_tokens=False, return_tensors="pt")
    ends = [processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids(TURN)]
    output = engine.model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False, eos_token_id=ends)
    said = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said.strip() if request.chat else said  # raw text goes on with its space


def test_batched_answers_equal_those_given_one_at_a_time(folders: dict[str, Path]) -> None:
    """Left padding and shared batches change no greedy answer: images, chat, raw text, answers of several lengths."""
    engine = TransformersEngine(folders["student"], 10_000)
    answers = [said.text for said in engine.generate([request for request, _ in ASKED])]
    assert answers == [answer_alone(engine, *asked) for asked in ASKED]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("special", [True, False])
def test_an_answer_ends_with_its_turn(special: bool, tmp_path: Path) -> None:
    """Also where the token that ends turns is none of the tokenizer's named ones, nor of the generation settings."""
    student, processor = tiny_student(tiny_teacher()), tiny_processor()
    processor.tokenizer.add_tokens([AddedToken("<|eot|>", special=special)])
    processor.chat_template = processor.chat_template.replace(TURN, "<|eot|>")
    student.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    for part in (student, processor):
        part.save_pretrained(tmp_path)
    prompts = Prompts(load_model_files(tmp_path))
    eos, turn, said = (processor.tokenizer.encode(text) for text in ("<|endoftext|>", "<|eot|>", "It is"))
    assert prompts.ends == [*eos, *turn]
    assert prompts.answer(GenerateRequest("What?"), [*said, *turn]) == ("It is", False)


def test_an_answer_ends_before_its_first_stop_text(folders: dict[str, Path]) -> None:
    """Of several stop texts the earliest counts; texts that do not occur change nothing, and other requests neither."""
    engine = TransformersEngine(folders["student"], 10_000)
    request = GenerateRequest("A text that goes on", max_new_tokens=30, chat=False)
    whole = engine.generate([request])[0].text
    early, late = whole[6:8], whole[9:12]
    expected = whole[: min(whole.index(early), whole.index(late))]
    stops = ((), ("never said",), (late, early), (early,))
    answers = engine.generate([replace(request, stop=stop) for stop in stops])
    assert [said.cut_off for said in answers] == [True, True, False, False]
    assert [said.text for said in answers] == [whole, whole, expected, whole[: whole.index(early)]]


def test_a_batch_ends_with_its_last_stop_text(folders: dict[str, Path]) -> None:
    """The model runs until each answer has its stop text, and no further."""
    engine = TransformersEngine(folders["student"], 10_000)
    request = GenerateRequest("A text that goes on", max_new_tokens=30, chat=False)
    whole = engine.generate([request])[0].text
    steps: list[int] = []
    engine.model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    engine.generate([replace(request, stop=(whole[place],)) for place in (4, 9)])
    ids = engine.files.tokenizer(whole[:10]).input_ids
    assert 0 < len(steps) <= len(ids) + 1


def test_a_language_model_chats_by_its_template_or_in_raw_text(tmp_path: Path) -> None:
    """With a template the prompt is what the template writes; without one, and for raw text, it is the text itself."""
    tiny_teacher(folder=tmp_path)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    request = GenerateRequest("What is a list?", max_new_tokens=8)
    prompts = {}
    for name, chat_template in (("with", template), ("without", None)):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = chat_template
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(tmp_path)
        engine = TransformersEngine(tmp_path, 1000)
        for chat in (True, False):
            asked = replace(request, chat=chat)
            prompts[name, chat] = tokenizer.decode(engine.prompts.encode(asked).input_ids_T)
            assert engine.generate([asked, asked])[0].text
    raw = request.prompt
    assert prompts.pop(("with", True)) == f"[user] {raw}<|im_end|>[assistant]"
    assert set(prompts.values()) == {raw}


def test_tokens_that_the_tokenizer_alone_has(tmp_path: Path) -> None:
    """Padding that was added to the tokenizer and not to the model pads; in a prompt such a token is named."""
    tiny_teacher(folder=tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<end_of_utterance>"
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, 4096)
    texts = ("A list", "The assignment statement binds names to values")
    requests = [GenerateRequest(text, chat=False) for text in texts]
    assert engine.generate(requests) == [engine.generate([request])[0] for request in requests]
    with pytest.raises(UserError, match=r"the token '<end_of_utterance>' .* beyond the 320 rows of its embeddings"):
        engine.generate([GenerateRequest("It ends<end_of_utterance>", chat=False)])


def test_bos_leads_raw_text_where_the_tokenizer_adds_it(folders: dict[str, Path]) -> None:
    """Raw prompts begin as scored texts do; an empty one is BOS."""
    engine = TransformersEngine(folders["teacher"], 1000)
    tokenizer = engine.files.tokenizer
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    raw = lambda text: engine.prompts.encode(GenerateRequest(text, chat=False)).input_ids_T.tolist()  # noqa: E731
    assert raw("for x") == tokenizer("for x").input_ids != tokenizer("for x", add_special_tokens=False).input_ids
    assert raw("") == [tokenizer.bos_token_id]


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("teacher", GenerateRequest("What?", (picture(0),)), "takes no images"),
        ("student", GenerateRequest("What?", (picture(0),), chat=False), "raw text"),
        ("student", GenerateRequest("Is <image> or <image>?", (picture(0),)), "1 images and 2 marks"),
        ("student", GenerateRequest("What is in this picture?", (picture(0),), 1020), "What is in this picture"),
        ("student", GenerateRequest("word " * 2000, (picture(0),)), "do not fit the context"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    folders: dict[str, Path], name: str, request_: GenerateRequest, message: str
) -> None:
    """Nothing is left out or cut silently: the error names the model or the prompt."""
    engine = TransformersEngine(folders[name], 1000)
    with pytest.raises(UserError, match=message):
        engine.generate([request_])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(UserError, match=str(tmp_path)):
        TransformersEngine(tmp_path, 1000)


def test_a_continuation_without_a_token_is_refused(folders: dict[str, Path]) -> None:
    """Its likelihood would be 1: an option that always wins."""
    with pytest.raises(UserError, match="no token to score"):
        TransformersEngine(folders["teacher"], 1000).loglikelihoods([ScoreRequest("a", " b"), ScoreRequest("a", "")])


def test_a_diverged_model_is_refused(folders: dict[str, Path]) -> None:
    """NaN likelihoods stop the evaluation: they would be counted as the first option."""
    engine = TransformersEngine(folders["teacher"], 1000)
    torch.nn.init.constant_(engine.model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        engine.loglikelihoods([ScoreRequest("a", " b")])
