"""Finds the answers in the rendering of a conversation.

An answer begins at the end of the generation prompt, which the model gets at inference. It ends after the tokens by
which the template closes it: the first special token behind it, and those that always follow that one (`find_closing`).
Both places are found by further renderings of the template, never by a search for the answer's text. So the text may
occur twice, be part of the question, be trimmed, or have an empty `<think>` block before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, takewhile, zip_longest

from lingu_ray.corpus.chat_template import CannotEncode, ChatTemplate
from lingu_ray.corpus.row import PLACEHOLDER, Messages, is_target

_STAND_IN = 3141592653589793  # this or a later number replaces an answer, to see what the template writes around it


@dataclass(frozen=True)
class Answer:
    """An answer in the rendering of the conversation that ends with it.

    The answer begins at `start` and ends with `rendering`. `closed`: whether it has an end-of-turn token. `is_target`:
    whether it is a target of the loss.
    """

    rendering: str
    start: int
    closed: bool
    is_target: bool


@dataclass(frozen=True)
class Segment:
    """A part of a rendered conversation, and whether it is an answer that is a target of the loss."""

    text: str
    is_target: bool


def find_answer(template: ChatTemplate, messages: Messages, closings: Iterable[str]) -> Answer:
    """Find the last message, an answer, in the rendering of the conversation.

    `closings`: texts that may close it. The first one behind the answer does; of several there, the longest.

    Before the answer, the rendering may differ from the generation prompt in white space (LLaVA-OneVision writes
    `assistant \\n` in conversations, and asks with `assistant\\n`), in nothing else.

    Raises:
        CannotEncode: the template refuses the conversation, changes the answer, or writes another prompt before it.
    """
    *before, message = messages
    prompt = template.render(before, add_generation_prompt=True)
    rendering = template.render(messages)
    stand_in = _stand_in(before)
    pattern = template.render([*before, {"role": message["role"], "content": stand_in}])
    head, _, tail = pattern.partition(stand_in)
    stop = len(rendering) - len(tail)
    start = _end_of_prompt(rendering, prompt, len(head))
    if start is None:
        same = next(place for place, pair in enumerate(zip_longest(prompt, rendering)) if pair[0] != pair[1])
        raise CannotEncode(
            f"the generation prompt is not what stands before an answer: after {prompt[:same][-20:]!r} it has "
            f"{prompt[same : same + 40]!r}, and the conversation {rendering[same : same + 40]!r}"
        )
    # the prompt may hold the beginning of the answer, such as `<think>`
    ends_with_it = _squeezed(rendering[:stop]).endswith(_squeezed(message["content"]))
    if pattern.count(stand_in) != 1 or not rendering.endswith(tail) or start > stop or not ends_with_it:
        raise CannotEncode(
            f"the chat template changes the text of an answer: {message['content'][:80]!r} became "
            f"{rendering[start:stop][:80]!r}"
        )
    end = _first(closings, tail)
    if end:
        return Answer(rendering[: stop + tail.index(end) + len(end)], start, True, is_target(message))
    return Answer(rendering[:start] + rendering[start:stop].rstrip(), start, False, is_target(message))


def check_prompts(messages: Messages, rendering: str) -> None:
    """Check that the rendering of a conversation has all that is asked in it, apart from white space.

    Raises:
        CannotEncode: the template leaves a text out, as those do that know no system messages, or changes it.
    """
    written = _squeezed(rendering)
    for message in messages:
        texts = message["content"].split(PLACEHOLDER) if message["role"] != "assistant" else []
        if missing := [text for text in texts if _squeezed(text) not in written]:
            raise CannotEncode(
                f"the chat template leaves out, or changes, what the {message['role']} says: {missing[0][:80]!r}"
            )


def find_closing(
    template: ChatTemplate, question: Messages, special_tokens: Sequence[str], other_tokens: Sequence[str]
) -> list[str]:
    """The tokens by which the template closes the answer to a question; empty if there are none.

    They are a special token, and those that directly follow it both within a conversation and at its end (Aya's
    `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`). Without a special token it is one of `other_tokens`, which were added to
    the vocabulary for turns, but not marked as special.

    Raises:
        CannotEncode: the template refuses the conversation.
    """
    stand_in = _stand_in(question)
    conversation = [*question, {"role": "assistant", "content": stand_in}]
    at_end = template.render(conversation).rpartition(stand_in)[2]
    closing = _run(special_tokens, at_end) or _run(other_tokens, at_end)[:1]
    if len(closing) < 2:
        return closing
    within = template.render([*conversation, *question], add_generation_prompt=True).partition(stand_in)[2]
    both = takewhile(lambda pair: pair[0] == pair[1], zip(closing, _run(special_tokens, within), strict=False))
    return [token for token, _ in both] or closing[:1]


def segments(answers: list[Answer], end_of_turn: str) -> list[Segment]:
    """Cut the rendering of a conversation, that of its last answer, into answers and the text between them.

    An earlier answer counts as an answer only if the whole begins with its own rendering. Else it is part of the next
    prompt, since nothing generates it in this form: templates of reasoning models drop the reasoning of earlier turns.
    An answer that the template does not close gets `end_of_turn`, or the student would never learn to stop.
    """
    whole = answers[-1].rendering
    found: list[Segment] = []
    done = 0
    for answer in answers:
        if not whole.startswith(answer.rendering):
            continue
        found += [Segment(whole[done : answer.start], is_target=False)]
        done = len(answer.rendering)
        found += [
            Segment(whole[answer.start : done] + ("" if answer.closed else end_of_turn), is_target=answer.is_target)
        ]
    return found


def closed(text: str, answers: list[Answer], end_of_turn: str) -> str:
    """The rendering `text` with `end_of_turn` after those of the answers that the template does not close."""
    for answer in reversed(answers):
        if not answer.closed and text.startswith(answer.rendering):
            text = answer.rendering + end_of_turn + text[len(answer.rendering) :]
    return text


def _stand_in(messages: Messages) -> str:
    """Digits that occur in no message."""
    held = "\0".join(message["content"] for message in messages)
    return next(digits for digits in map(str, count(_STAND_IN)) if digits not in held)


def _first(tokens: Iterable[str], text: str) -> str:
    """The token that comes first in the text, of several there the longest; empty if there is none."""
    return min(
        (token for token in tokens if token in text), key=lambda token: (text.index(token), -len(token)), default=""
    )


def _run(tokens: Sequence[str], text: str) -> list[str]:
    """The token that comes first in the text, and those that directly follow it."""
    found = []
    while (token := _first(tokens, text)) and (not found or text.startswith(token)):
        found.append(token)
        text = text.partition(token)[2]
    return found


def _end_of_prompt(rendering: str, prompt: str, content: int) -> int | None:
    """Where the prompt ends in a rendering that begins with it, apart from white space; else None.

    White space at the prompt's end counts up to `content`, where the text of the answer begins.
    """
    if rendering.startswith(prompt):
        return len(prompt)
    begin = _squeezed(prompt)
    if not begin or not _squeezed(rendering).startswith(begin):
        return None
    end = [place for place, character in enumerate(rendering) if not character.isspace()][len(begin) - 1] + 1
    rest = rendering[end:content]
    return end + (len(rest) - len(rest.lstrip()) if prompt[-1:].isspace() else 0)


def _squeezed(text: str) -> str:
    return "".join(text.split())
