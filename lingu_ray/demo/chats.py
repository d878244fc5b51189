"""Chats about the reference text, for training the teacher, for distilling and for held-out questions.

A question about a passage gives its first words or names one of its words; the answer is the rest or all of the
passage, to the end of a sentence. A question about a sentence that breaks off asks for the next word, one of six that
are asked for equally often: this can be judged on text that no model has read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lingu_ray.demo.text import Documents

BEGINNING_WORDS = range(4, 11)  # of a passage, where the question gives them
LONGEST_ANSWER = 40  # words: a chat must fit into one training passage
CONTEXT_WORDS = range(4, 13)  # before the word to say
NEXT_WORDS = ("and", "be", "is", "of", "the", "to")
BREAK = " ..."  # where a text in a question breaks off

_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")


@dataclass(frozen=True)
class Chat:
    """A question in words, and its answer."""

    question: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """The chat as turns, for a chat template."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]

    def training_record(self) -> dict[str, str]:
        """The record of a `prompt_completion` source."""
        return {"prompt": self.question, "completion": self.answer}

    def evaluation_item(self) -> dict[str, str]:
        """The item of an `exact_match` task."""
        return {"question": self.question, "answer": self.answer}


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph."""
    return _SENTENCE_END.split(text)


def _beginning(paragraph: str, most_words: int) -> str:
    """The first whole sentences of a paragraph, at most `most_words` words; empty if the first has more."""
    taken: list[str] = []
    for sentence in sentences(paragraph):
        if len(" ".join([*taken, sentence]).split(" ")) > most_words:
            break
        taken.append(sentence)
    return " ".join(taken)


def _go_on(paragraph: str, chance: random.Random) -> Chat | None:
    given = chance.choice(BEGINNING_WORDS)
    words = _beginning(paragraph, given + LONGEST_ANSWER).split(" ")
    if len(words) < given + 4:
        return None
    form = chance.choice(("Go on: {}", f"How does this go on? {{}}{BREAK}", f"{{}}{BREAK}", "{}"))
    return Chat(form.format(" ".join(words[:given])), " ".join(words[given:]))


def _about(paragraph: str, chance: random.Random) -> Chat | None:
    answer = _beginning(paragraph, LONGEST_ANSWER)
    words = re.findall(r"[A-Za-z_]{4,}", answer)
    if not words:
        return None
    form = chance.choice(
        (
            *("What is {}?", "What does {} mean?", "What does {} do?", "What follows from {}?", "How does {} work?"),
            *("Where is {} used?", "When is {} needed?", "Why is there {}?", "Who uses {}?", "Is {} right?"),
            *("Tell me about {}.", "Explain {}.", "Describe {}.", "Say something of {}.", "Name {}.", "{}?"),
        )
    )
    return Chat(form.format(max(words, key=len)), answer)


def _next_word(sentence: str, chance: random.Random) -> Chat | None:
    words = sentence.split(" ")
    indices = [index for index in range(CONTEXT_WORDS.start, len(words)) if words[index] in NEXT_WORDS]
    if not indices:
        return None
    index = chance.choice(indices)
    context = " ".join(words[max(0, index - chance.choice(CONTEXT_WORDS)) : index])
    form = chance.choice(("Which word comes next? {}", "What is the next word? {}", "Say the next word. {}"))
    return Chat(form.format(context + BREAK), words[index])


def _made(make: Callable[[str, random.Random], Chat | None], texts: Iterator[str], chance: random.Random) -> list[Chat]:
    return [chat for text in texts if (chat := make(text, chance)) is not None]


def passage_chats(documents: Documents, seed: int) -> list[Chat]:
    """Up to two chats per paragraph, one that gives its beginning and one that asks about a word; shuffled."""
    chance = random.Random(seed)
    chats = [chat for make in (_go_on, _about) for chat in _made(make, _paragraphs(documents), chance)]
    chance.shuffle(chats)
    return chats


def next_words(documents: Documents, seed: int, others_than: tuple[Documents, ...] = ()) -> list[Chat]:
    """One question per sentence for its next word, each word equally often; the words take turns.

    Left out are sentences that are also in the documents `others_than`, and surplus sentences of frequent words.
    """
    chance = random.Random(seed)
    read = {sentence for others in others_than for sentence in _sentences(others)}
    chats = _made(_next_word, (sentence for sentence in _sentences(documents) if sentence not in read), chance)
    chance.shuffle(chats)
    by_word = [[chat for chat in chats if chat.answer == word] for word in NEXT_WORDS]
    return [chat for turn in zip(*by_word, strict=False) for chat in turn]


def _sentences(documents: Documents) -> Iterator[str]:
    return (sentence for paragraph in _paragraphs(documents) for sentence in sentences(paragraph))


def _paragraphs(documents: Documents) -> Iterator[str]:
    return (paragraph for kept in documents.values() for paragraph in kept)
