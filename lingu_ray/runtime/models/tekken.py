"""Tokenizers and processors, also of Mistral's models, which have a file of Mistral's own library, tekken.json.

Where that library is installed, and vLLM brings it along, Transformers lets it read the file, even beside a
tokenizer.json: such a tokenizer takes no chat template, and has one text for many of its tokens. Here Transformers
itself reads them.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, AutoTokenizer
from transformers.integrations.mistral import convert_tekken_tokenizer
from transformers.utils import cached_file

_FILE = "tekken.json"


def read_tokenizer(place: str, revision: str | None = None, **arguments: Any) -> Any:
    """A tokenizer by `AutoTokenizer`; `place`: a folder or hub id."""
    own = _read_by_transformers(place, revision)
    return _with_special_tokens(AutoTokenizer.from_pretrained(place, revision=revision, **own, **arguments))


def read_processor(place: str, revision: str | None = None, **arguments: Any) -> Any:
    """A processor by `AutoProcessor`; `place`: a folder or hub id."""
    own = _read_by_transformers(place, revision)
    processor = AutoProcessor.from_pretrained(place, revision=revision, **own, **arguments)
    if hasattr(processor, "tokenizer"):
        processor.tokenizer = _with_special_tokens(processor.tokenizer)
    return processor


def _read_by_transformers(place: str, revision: str | None) -> dict[str, bool]:
    """What `from_pretrained` takes so that no other library is asked; nothing where there is no such file."""
    found = cached_file(
        place,
        _FILE,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return {"mistral_format": False} if found else {}


def _with_special_tokens(tokenizer: Any) -> Any:
    """The tokenizer; one that was made of tekken.json alone with special tokens by name, and BOS before every text."""
    file = str(getattr(tokenizer, "vocab_file", None))
    if not file.endswith(_FILE):
        return tokenizer
    named = convert_tekken_tokenizer(file)
    named.add_bos_token = True
    return named
