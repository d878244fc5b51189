"""From texts to scored tokens: context and continuation as token ids, in windows that fit the model.

As in lm-evaluation-harness: raw text, trailing spaces of the context moved to the continuation, and first what the
tokenizer puts before a text, mostly BOS. All engines score the same tokens in the same windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Score, ScoreRequest


@dataclass(frozen=True)
class Window:
    """What one forward pass scores of a request: the last `scored` of `ids`, predicted from those before them.

    `cut_to`: as of `Score`.
    """

    request: int
    ids: tuple[int, ...]
    scored: int
    cut_to: int


@dataclass(frozen=True)
class WindowScore:
    """Summed log-likelihood of a window's scored tokens, and whether each was the most likely."""

    loglik: float
    greedy: bool


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer adds before a text: mostly BOS or nothing; GLM-4's two tokens."""
    ids, text = (tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
    return list(takewhile(lambda token: token != text[0], ids))


def first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What replaces an empty context, so that the first token is predicted too: BOS, or EOS where there is none.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise UserError(
        "the tokenizer has neither a BOS nor an EOS token to start a text from: name one in its tokenizer_config.json"
    )


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[ScoreRequest]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each context and continuation, split where the context's own tokens end; no context is empty.

    Raises:
        UserError: the tokenizer has neither a BOS nor an EOS token.
    """
    lead, first = leading_ids(tokenizer), first_ids(tokenizer)
    bare = [request.context.rstrip() for request in requests]
    whole = [request.context + request.continuation for request in requests]
    pairs = []
    for context_ids, whole_ids in zip(_tokenize(tokenizer, bare), _tokenize(tokenizer, whole), strict=True):
        pairs.append((lead + context_ids or first, whole_ids[len(context_ids) :]))
    return pairs


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False).input_ids if texts else []


def windows(request: int, context_ids: list[int], continuation_ids: list[int], max_length: int) -> Iterator[Window]:
    """Split a request into forward passes of at most `max_length` input tokens; each token is scored exactly once.

    A request that fits is one window. A long context loses its beginning; a long continuation is split, and each part
    is predicted from as many of the tokens before it as fit.
    """
    ids = context_ids + continuation_ids
    cut_to = max_length if len(ids) > max_length + 1 else 0
    for begin in range(len(context_ids), len(ids), max_length):
        end = min(begin + max_length, len(ids))
        yield Window(request, tuple(ids[max(0, end - 1 - max_length) : end]), end - begin, cut_to)


def all_windows(tokenizer: PreTrainedTokenizerBase, requests: Sequence[ScoreRequest], max_length: int) -> list[Window]:
    """The windows of all requests, in order.

    Raises:
        UserError: a continuation has no token of its own.
    """
    cuts: list[Window] = []
    for index, (context_ids, continuation_ids) in enumerate(encode_pairs(tokenizer, requests)):
        if not continuation_ids:
            raise UserError(f"the continuation {requests[index].continuation!r} has no token to score")
        cuts.extend(windows(index, context_ids, continuation_ids, max_length))
    return cuts


def join_windows(path: str, cuts: Sequence[Window], scored: Iterable[WindowScore], requests: int) -> list[Score]:
    """Scores of the requests from those of their windows.

    Raises:
        UserError: a likelihood is not finite.
    """
    logliks, tokens, greedy, cut_to = [0.0] * requests, [0] * requests, [True] * requests, [0] * requests
    for window, score in zip(cuts, scored, strict=True):
        if not math.isfinite(score.loglik):
            raise UserError(f"{path} gives likelihoods that are not finite; its training has diverged")
        logliks[window.request] += score.loglik
        tokens[window.request] += window.scored
        greedy[window.request] &= score.greedy
        cut_to[window.request] = window.cut_to
    return [Score(*score) for score in zip(logliks, tokens, greedy, cut_to, strict=True)]
