"""The demo's chats: what is asked and answered, and that teacher and student are asked alike."""

from __future__ import annotations

import re

import pytest
import torch

from lingu_ray.config import VisionConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.demo import chats, prepare, teacher, text
from lingu_ray.demo.chats import Chat
from lingu_ray.distill.student import build_processor


@pytest.fixture(scope="module")
def splits() -> dict[str, text.Documents]:
    return text.split(text.read_documents())


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
        words = chat.question.split(" ")
        beginning = " ".join(words[-chats.BEGINNING_WORDS :])
        names = any(word in chat.answer for word in re.findall(r"[A-Za-z_]{4,}", chat.question))
        whole = f"{beginning} {chat.answer}"
        found = [p for p in paragraphs if p.startswith(whole) or (names and p.startswith(chat.answer))]
        assert found
        assert any(p.endswith(chat.answer) or re.search(re.escape(chat.answer) + " [A-Z]", p) for p in found)
        assert len(chat.answer.split(" ")) <= chats.LONGEST_ANSWER


def test_a_quote_stands_in_its_question_once(splits: dict[str, text.Documents]) -> None:
    """The sentence's end from the words given on, which stand in it once; what is held out was never read."""
    read = (splits["training"], splits["distillation"])
    made = [chats.quotes(documents, seed=0) for documents in read]
    made.append(chats.quotes(splits["held_out"], seed=0, others_than=read))
    quoted: list[set[str]] = []
    for quotes in made:
        quoted.append(set())
        for chat in quotes:
            sentence = chat.question[: chat.question.index(f"{chat.answer} ") + len(chat.answer)]
            given = re.findall(r'"([^"]*)"', chat.question.removeprefix(sentence))[-1]
            assert chat.answer.startswith(f"{given} ") and sentence.count(given) == 1
            quoted[-1].add(sentence)
    assert len(quoted[-1]) >= 500 and not quoted[-1] & (quoted[0] | quoted[1])


def test_the_teacher_reads_chats_as_its_student_is_asked(tokenizer: prepare.PreTrainedTokenizerFast) -> None:
    """Token for token: question, answer and end of turn are those that a VLM made of the teacher is trained on."""
    chat = Chat('It holds a list. Quote it from "a list".', "a list.")
    [told] = tokenizer(teacher.chat_texts(tokenizer, [chat])).input_ids
    encoder = Encoder(build_processor(tokenizer, VisionConfig(**prepare.VISION)), max_length=200)
    sample = encoder.encode(Row("chats", 0, chat.messages(), [], distill=True))
    assert told[: len(sample)] == sample.input_ids_T.tolist()
    assert sample.input_ids_T[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(told[len(sample) :]) == "\n"


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
