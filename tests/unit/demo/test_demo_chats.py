"""The demo's chats: what is asked and answered, and that teacher and student are asked alike."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from lingu_ray.config import VisionConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.demo import chats, prepare, teacher, text
from lingu_ray.demo.chats import Chat
from lingu_ray.distill.new_student import build_processor
from lingu_ray.evaluation.engines.prompts import TextProcessor
from lingu_ray.runtime.models.load import make_vision

pytestmark = pytest.mark.slow  # reads the demo's text


@pytest.fixture(scope="module")
def tokenizer(splits: dict[str, text.Documents]) -> prepare.PreTrainedTokenizerFast:
    return text.train_tokenizer(text.running_texts(splits["distillation"]), 600)


def test_passages_are_whole_sentences_of_the_text(splits: dict[str, text.Documents]) -> None:
    """An answer goes on from the words given, or holds the word asked about, and ends with a sentence."""
    documents = splits["distillation"]
    paragraphs = [paragraph for kept in documents.values() for paragraph in kept]
    made = chats.passage_chats(documents, seed=0)
    assert len(made) > 700 and made == chats.passage_chats(documents, seed=0)
    for chat in made:
        begun = chat.question.removesuffix(chats.BREAK)
        named = [word for word in re.findall(r"[A-Za-z_]{4,}", chat.question) if word in chat.answer]
        before = {p: p.partition(f" {chat.answer}")[0] for p in paragraphs if chat.answer in p}
        found = [p for p in before if begun.endswith(before[p]) or (named and p.startswith(chat.answer))]
        assert any(p.endswith(chat.answer) or re.search(re.escape(chat.answer) + " [A-Z]", p) for p in found)
        assert len(chat.answer.split(" ")) <= chats.LONGEST_ANSWER


def test_next_words_follow_and_each_is_asked_for_equally_often(splits: dict[str, text.Documents]) -> None:
    """The words of a question and its answer stand in a sentence; of those held out, in none that was read."""
    read = (splits["training"], splits["distillation"])
    known = " \n ".join(p for documents in read for kept in documents.values() for p in kept)
    held_out = " \n ".join(p for kept in splits["held_out"].values() for p in kept)
    made = chats.next_words(splits["held_out"], seed=0, others_than=read)
    assert len(made) >= 500
    assert len(set(Counter(chat.answer for chat in made[:300]).values())) == 1
    for chat in made:
        begun = chat.question.removesuffix(chats.BREAK)
        forms = ("Which word comes next? ", "What is the next word? ", "Say the next word. ")
        [context] = [begun.removeprefix(form) for form in forms if begun.startswith(form)]
        assert chat.answer in chats.NEXT_WORDS and f"{context} {chat.answer}" in held_out
    repeated = sum(chat.question.split("? ")[-1].removesuffix(chats.BREAK) in known for chat in made)
    assert repeated < 0.02 * len(made)  # a few words may come together by chance


def test_the_teacher_reads_chats_as_its_student_is_asked(tokenizer: prepare.PreTrainedTokenizerFast) -> None:
    """Token for token: question, answer and end of turn are those that a VLM made of the teacher is trained on.

    And the evaluation asks the teacher, which has no processor, the same.
    """
    chat = Chat("Which word comes next? It holds a list ...", "of")
    [told] = tokenizer(teacher.chat_texts(tokenizer, [chat])).input_ids
    row = Row("chats", 0, chat.messages(), [], distill=True)
    asked = Encoder(TextProcessor(tokenizer), max_length=200).encode_question(row).input_ids_T.tolist()
    assert told[: len(asked)] == asked
    vision = VisionConfig(**prepare.VISION)
    student = Encoder(build_processor(tokenizer, make_vision(vision)), max_length=200)
    assert student.encode_question(row).input_ids_T.tolist() == asked
    sample = student.encode(row)
    assert told[: len(sample)] == sample.input_ids_T.tolist()
    assert sample.input_ids_T[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(told[len(sample) :]) == "\n"


def test_newlines_stand_between_turns_alone(splits: dict[str, text.Documents]) -> None:
    """No text and no turn of a chat has one: a teacher that loses track of a conversation does not open a turn."""
    training = splits["training"]
    told = prepare.training_chats(training, seed=0)
    assert not [one for one in text.running_texts(training) if "\n" in one]
    assert not [chat for chat in told if "\n" in chat.question + chat.answer]


def test_the_teacher_reads_no_chat_from_its_middle(tokenizer: prepare.PreTrainedTokenizerFast) -> None:
    """Wherever a passage is drawn: in running text it begins there, in a chat at the chat's first word."""
    told = [Chat("What is it?", "It is a list."), Chat("And that?", "That is a function of two arguments.")]
    stream = teacher.token_stream(tokenizer, ["Some running text.", "More of it."], told)
    begins = stream.begin_T.unique()
    running = len(tokenizer("Some running text.").input_ids) + len(tokenizer("More of it.").input_ids) + 2
    assert torch.equal(begins[:running], torch.arange(running))
    user = tokenizer("User: And").input_ids[:2]
    assert len(begins) == running + 2
    assert all(stream.ids_T[begin : begin + 2].tolist() == user for begin in begins[running:])
