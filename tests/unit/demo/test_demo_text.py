"""The demo's English: what is read, how it is dealt out, and the tokenizer made from it."""

from __future__ import annotations

import pytest

from lingu_ray.demo import items, text

pytestmark = pytest.mark.slow  # reads the demo's text


def test_no_paragraph_stands_in_two_splits(splits: dict[str, text.Documents]) -> None:
    """What is held out was never trained on: neither documents nor paragraphs are shared between splits."""
    names = [set(documents) for documents in splits.values()]
    kept = [{p for document in documents.values() for p in document} for documents in splits.values()]
    for parts in (names, kept):
        assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_splits_have_their_shares_and_stay_the_same(splits: dict[str, text.Documents]) -> None:
    """Each split has about its share of the text, and the dealing out does not depend on the documents' order."""
    sizes = {name: sum(len(p) for d in documents.values() for p in d) for name, documents in splits.items()}
    for name, size in sizes.items():
        assert size / sum(sizes.values()) == pytest.approx(text.SHARES[name], abs=0.08)
    documents = {name: kept for part in splits.values() for name, kept in reversed(part.items())}
    assert text.split(documents) == splits


def test_only_prose_is_kept() -> None:
    """Code, grammar, tables and headings are left out; a paragraph becomes one line."""
    prose = "The operator yields true if its argument is false, and false otherwise,\n   whatever the argument may be."
    assert text.paragraphs(
        f"Title\n*****\n\n{prose}\n\n>>> not x and this line is long enough to be prose, or is it"
    ) == [" ".join(prose.split())]


def test_tokenizer_gives_back_what_it_was_given(splits: dict[str, text.Documents]) -> None:
    """Byte-level BPE is lossless on text it has never seen, and has exactly the tokens asked for."""
    tokenizer = text.train_tokenizer(text.running_texts(splits["training"])[:300], 600)
    assert len(tokenizer) == 600
    for unseen in ("Which digit? Größer – 数字 \n\t<b>7</b>", next(iter(splits["held_out"].values()))[0]):
        assert tokenizer.decode(tokenizer(unseen).input_ids) == unseen


def test_cloze_items_are_well_formed(splits: dict[str, text.Documents]) -> None:
    """A thousand items, all four contexts different, `gold` the passage's own, the others from other documents."""
    held_out = splits["held_out"]
    cloze = items.cloze_items(held_out, 1000, seed=0)
    words = items.CONTEXT_WORDS + items.CONTINUATION_WORDS
    document_of = {" ".join(run): name for name, run in text.passages(held_out, words)}
    contexts = {passage.rsplit(" ", items.CONTINUATION_WORDS)[0]: name for passage, name in document_of.items()}
    assert len(cloze) == 1000
    for item in cloze:
        options = item["context_options"]
        assert len(set(options)) == items.OPTIONS
        own = document_of[f"{options[item['gold']]} {item['continuation']}"]
        assert own not in {contexts[option] for place, option in enumerate(options) if place != item["gold"]}
    assert {item["gold"] for item in cloze} == set(range(items.OPTIONS))
