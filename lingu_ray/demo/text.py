"""English text that comes with Python: the reference of `pydoc` and the docstrings of the standard library.

Documents (a topic of the reference, or a module) are divided into three splits, so that no part of a held-out document
is ever trained on: `training` for the teacher, `distillation` for the language-heavy source, `held_out` for evaluation.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lingu_ray.distill.new_student import PLAIN
from lingu_ray.errors import UserError

Documents = dict[str, list[str]]
"""Paragraphs of every document, by its name."""

SHARES = {"held_out": 0.2, "distillation": 0.06, "training": 0.74}
"""Share of the text in each split. The one for distilling is small: few users have the corpus that made their LM."""

END_OF_TEXT = "<|endoftext|>"

_LEAST_CHARACTERS = 400_000  # Python 3.11 to 3.13 carry 1.2 million
_NOT_PROSE = re.compile(r">>>|::=|\*{4}|={4}|-{4}|~{4}|\|\s")
# Tests, programs and jokes, and what some distributions of Python leave out.
_LEFT_OUT = {"test", "idlelib", "lib2to3", "distutils", "tkinter", "turtle", "turtledemo", "ensurepip", "this"}


@cache
def read_documents() -> Documents:
    """Read all prose of this Python, once; a paragraph that is in several documents is kept in the first alone.

    Raises:
        UserError: this Python has too little (its standard library has no sources or no docstrings).
    """
    seen: set[str] = set()
    documents: Documents = {}
    for name, text in _texts():
        kept = documents.setdefault(name, [])
        for paragraph in paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
    if (found := _size(documents)) < _LEAST_CHARACTERS:
        raise UserError(
            f"the demo learns English from the docstrings of the standard library, and this Python ({sys.executable}) "
            f"carries only {found} characters of them: use a CPython 3.11 or newer with its library's sources"
        )
    return {name: kept for name, kept in documents.items() if kept}


def _texts() -> Iterator[tuple[str, str]]:
    for name in sorted(topics):
        yield f"topic:{name}", topics[name]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        module = parts[0].removesuffix(".py")
        if module in sys.stdlib_module_names and module not in _LEFT_OUT and "tests" not in parts:
            for text in _docstrings(path):
                yield f"module:{module}", text


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file, breadth first as `ast.walk` goes, without looking into expressions."""
    nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            nodes.extend(getattr(node, block, ()))


def paragraphs(text: str) -> list[str]:
    """The paragraphs that are prose, each on one line: no code, tables, headings or grammar."""
    lines = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if not _NOT_PROSE.search(block))
    return [line for line in lines if len(line) >= 60 and _letters(line) > 0.85]


def _letters(line: str) -> float:
    """Share of letters and spaces."""
    return sum(character.isalpha() or character == " " for character in line) / len(line)


def split(documents: Documents) -> dict[str, Documents]:
    """Divide the documents by `SHARES` of their characters, in the order of their names' hashes."""
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    total = _size(documents)
    splits: dict[str, Documents] = {name: {} for name in SHARES}
    names = iter(SHARES)
    current = next(names)
    for name in order:
        if _size(splits[current]) >= SHARES[current] * total:
            current = next(names)
        splits[current][name] = documents[name]
    return splits


def _size(documents: Documents) -> int:
    return sum(len(paragraph) for kept in documents.values() for paragraph in kept)


def running_texts(documents: Documents) -> list[str]:
    """One text per document, without newlines: in the teacher's training text, these only separate turns."""
    return [" ".join(kept) for kept in documents.values()]


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocabulary` tokens, the 256 bytes and the end-of-text token among them.

    It has the chat template that a VLM made of the teacher gets, so both are prompted alike.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=PLAIN,
    )


def passages(documents: Documents, words: int) -> Iterator[tuple[str, list[str]]]:
    """Whole passages of exactly `words` words, one after the other and not overlapping, with their document's name."""
    for name, kept in documents.items():
        run = " ".join(kept).split(" ")
        for start in range(0, len(run) - words + 1, words):
            yield name, run[start : start + words]
