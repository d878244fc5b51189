"""Items of the language tasks whose texts are scored, from passages of running text.

The four-way cloze gives one continuation and four contexts: which one does it follow? (Choosing among four
continuations instead would mostly show which of them is likely by itself.)
"""

from __future__ import annotations

import random
from typing import Any

from lingu_ray.demo.text import Documents, passages

CONTEXT_WORDS, CONTINUATION_WORDS = 12, 12
PERPLEXITY_WORDS, PERPLEXITY_TEXTS = 80, 150
OPTIONS = 4


def cloze_items(documents: Documents, count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` items `context_options, continuation, gold`; the wrong contexts come from other documents."""
    chance = random.Random(seed)
    cut = list(passages(documents, CONTEXT_WORDS + CONTINUATION_WORDS))
    chance.shuffle(cut)
    items: list[dict[str, Any]] = []
    for name, words in cut[:count]:
        context, continuation = words[:CONTEXT_WORDS], words[CONTEXT_WORDS:]
        others = [(name, words)]
        while any(document == name for document, _ in others):
            others = chance.sample(cut, OPTIONS - 1)
        options = [other[:CONTEXT_WORDS] for _, other in others]
        gold = chance.randrange(OPTIONS)
        options.insert(gold, context)
        items.append(
            {
                "context_options": [" ".join(option) for option in options],
                "continuation": " ".join(continuation),
                "gold": gold,
            }
        )
    return items


def perplexity_texts(documents: Documents, seed: int) -> list[dict[str, str]]:
    """At most `PERPLEXITY_TEXTS` passages, drawn from all documents."""
    texts = [{"text": " ".join(words)} for _, words in passages(documents, PERPLEXITY_WORDS)]
    random.Random(seed).shuffle(texts)
    return texts[:PERPLEXITY_TEXTS]
