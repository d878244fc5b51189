"""Chats about the reference text: what the teacher reads, the student is distilled on, and held-out questions ask.

The answers end where a sentence ends. Of a passage the question gives the first words or names a word, and the answer is
the rest or the whole of it. A quote says a sentence of the question again from two of its words on: it can be judged on
text that no model has read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lingu_ray.demo.text import Documents

BEGINNING_WORDS = 8  # of a paragraph, given by `go_on`
LONGEST_ANSWER = 40  # words: the teacher reads a chat whole
QUOTABLE_WORDS = range(8, 19)  # of a sentence
QUOTED_WORDS = range(5, 8)  # the two that are given, and the rest to the end

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
    """The whole sentences that a paragraph begins with, of at most so many words; empty if the first has more."""
    taken: list[str] = []
    for sentence in sentences(paragraph):
        if len(" ".join([*taken, sentence]).split(" ")) > most_words:
            break
        taken.append(sentence)
    return " ".join(taken)


def _go_on(paragraph: str, chance: random.Random) -> Chat | None:
    words = _beginning(paragraph, BEGINNING_WORDS + LONGEST_ANSWER).split(" ")
    if len(words) < BEGINNING_WORDS + 4:
        return None
    form = chance.choice(("Go on: {}", "How does this go on? {}", "Continue the text. {}"))
    return Chat(form.format(" ".join(words[:BEGINNING_WORDS])), " ".join(words[BEGINNING_WORDS:]))


def _about(paragraph: str, chance: random.Random) -> Chat | None:
    answer = _beginning(paragraph, LONGEST_ANSWER)
    words = re.findall(r"[A-Za-z_]{4,}", answer)
    if not words:
        return None
    form = chance.choice(
        ("What is {}?", "What does {} mean?", "How does {} work?", "Tell me about {}.", "Explain {}.", "Describe {}.")
    )
    return Chat(form.format(max(words, key=len)), answer)


def _quote(sentence: str, chance: random.Random) -> Chat | None:
    words = sentence.split(" ")
    start = len(words) - chance.choice(QUOTED_WORDS)
    if len(words) not in QUOTABLE_WORDS or sentence[-1] not in ".!?" or '"' in sentence:
        return None
    given, quoted = " ".join(words[start : start + 2]), " ".join(words[start:])
    if sentence.count(given) > 1:
        return None
    form = chance.choice(('{} Quote it from "{}" on.', '{} How does it end, from "{}" on?', '{} Repeat it from "{}".'))
    return Chat(form.format(sentence, given), quoted)


def _made(make: Callable[[str, random.Random], Chat | None], texts: Iterator[str], chance: random.Random) -> list[Chat]:
    return [chat for text in texts if (chat := make(text, chance)) is not None]


def passage_chats(documents: Documents, seed: int) -> list[Chat]:
    """Two chats a paragraph, one that begins it and one that asks about it, where it has what they need; shuffled."""
    chance = random.Random(seed)
    chats = [chat for make in (_go_on, _about) for chat in _made(make, _paragraphs(documents), chance)]
    chance.shuffle(chats)
    return chats


def quotes(documents: Documents, seed: int, others_than: tuple[Documents, ...] = ()) -> list[Chat]:
    """One quote a sentence that can be quoted and stands in none of the documents `others_than`; shuffled."""
    chance = random.Random(seed)
    read = {sentence for others in others_than for sentence in _sentences(others)}
    chats = _made(_quote, (sentence for sentence in _sentences(documents) if sentence not in read), chance)
    chance.shuffle(chats)
    return chats


def _sentences(documents: Documents) -> Iterator[str]:
    return (sentence for paragraph in _paragraphs(documents) for sentence in sentences(paragraph))


def _paragraphs(documents: Documents) -> Iterator[str]:
    return (paragraph for kept in documents.values() for paragraph in kept)
