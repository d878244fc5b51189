"""Tokens as readable text: a piece for each token, in segments of equal role, image tokens folded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lingu_ray.corpus.encode import Sample
from lingu_ray.preview.roles import Judge

SPACE = "·"  # where one is easily missed
_BROKEN = "�"
PART = "…"  # a token that is part of a character which a later one completes


@dataclass(frozen=True)
class Role:
    """What a token is for. `key` names its color and mark; `learned` and `teacher` say it, and may be empty."""

    key: str
    learned: str = ""
    teacher: str = ""

    @property
    def label(self) -> str:
        """What is learned, or that nothing is where the teacher has no part either."""
        return self.learned or ("" if self.teacher else "prompt")


LEFT_OUT = Role("cut", "left out")
LEFT_OUT_TOKENS = 300  # that are shown


@dataclass(frozen=True)
class Piece:
    """A token, or `count` image tokens in a row: text to show, id, name in the vocabulary, whether it is special."""

    text: str
    id: int
    name: str
    special: bool
    count: int = 1


@dataclass(frozen=True)
class Segment:
    """Neighboring tokens of one role."""

    role: Role
    pieces: list[Piece]

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(piece.count for piece in self.pieces)


def segments(sample: Sample, whole: Sample, judge: Judge, tokenizer: Any) -> list[Segment]:
    """The sample's tokens by role; after them the first of those that `whole` has beyond, which are left out."""
    end = len(sample) + LEFT_OUT_TOKENS
    ids, visual = whole.input_ids_T[:end].tolist(), whole.visual_T[:end].tolist()
    roles = [*_roles(sample, judge), *(LEFT_OUT for _ in ids[len(sample) :])]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = tokenizer.convert_ids_to_tokens(ids)
    pieces = (
        Piece(visible(text) or name, id, name, id in special)
        for id, name, text in zip(ids, names, token_texts(ids, tokenizer), strict=True)
    )
    marked = zip(roles, visual, pieces, strict=True)
    return [
        Segment(role, _with_edges(list(_folded((is_visual, piece) for _, is_visual, piece in group))))
        for role, group in itertools.groupby(marked, key=lambda item: item[0])
    ]


def _with_edges(pieces: list[Piece]) -> list[Piece]:
    """The pieces of a segment with the spaces at both ends made visible."""
    first, last = pieces[0], pieces[-1]
    if first.text.startswith(" "):
        pieces[0] = replace(first, text=SPACE + first.text[1:])
    if last.text.endswith(" "):
        pieces[-1] = replace(pieces[-1], text=pieces[-1].text[:-1] + SPACE)
    return pieces


def _roles(sample: Sample, judge: Judge) -> Iterator[Role]:
    roles = judge.roles(sample)
    ce, kd = f"CE{_times(judge.ce_weight)}", f"KD{_times(judge.kd_weight)}"
    for by_ce, by_kd, donated, query in zip(
        roles.ce_T.tolist(), roles.kd_T.tolist(), roles.donated_T.tolist(), roles.query_T.tolist(), strict=True
    ):
        learned = " + ".join(name for name, is_so in ((ce, by_ce), (kd, by_kd)) if is_so)
        teacher = "query" if query else "donated" if donated else ""  # an earlier answer is both
        yield Role("kd" if by_kd else "ce" if by_ce else teacher or "context", learned, teacher)


def _times(weight: float) -> str:
    return "" if weight == 1 else f" × {weight:g}"


def _folded(pieces: Iterator[tuple[bool, Piece]]) -> Iterator[Piece]:
    """The pieces with image tokens in a row as one."""
    for (is_visual, id), run in itertools.groupby(pieces, key=lambda item: (item[0], item[1].id if item[0] else None)):
        group = [piece for _, piece in run]
        if is_visual:
            yield Piece(f"{group[0].name}×{len(group)}", id or 0, group[0].name, True, len(group))
        else:
            yield from group


def token_texts(ids: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """What each token adds to the decoded text; `PART` for one that leaves a character incomplete.

    A token is decoded with those before it, back to where the text before was whole: some tokenizers drop the space of
    a first token, and decode the bytes of several characters together.
    """
    start = known = 0  # of the tokens decoded again; where what they add begins
    for index in range(len(ids)):
        text = _decode(tokenizer, ids[start : index + 1])
        if text.endswith(_BROKEN):
            yield PART
            continue
        yield text[len(_decode(tokenizer, ids[start:known])) :]
        start, known = known, index + 1


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


_EASILY_MISSED = re.compile(r" (?= )|(?<= ) | (?=\n)|(?<=\n) |^ $")


def visible(text: str) -> str:
    """Text whose line breaks, tabs, lone and doubled spaces and other unprintable characters can be seen."""
    return "".join(map(_shown, _EASILY_MISSED.sub(SPACE, text)))


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
