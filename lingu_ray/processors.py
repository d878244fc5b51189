"""Tokenizers and processors, also of Mistral's models, which have a file of Mistral's own library, tekken.json.

Where that library is installed, and vLLM brings it along, Transformers lets it read the file, even beside a
tokenizer.json: such a tokenizer takes no chat template, and has one text for many of its tokens. Here Transformers
itself reads them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, TokenizersBackend
from transformers.integrations.mistral import convert_tekken_tokenizer
from transformers.utils import cached_file

_FILE = "tekken.json"


def read_tokenizer(place: str, revision: str | None = None, trust_remote_code: bool = False, **arguments: Any) -> Any:
    """A tokenizer by `AutoTokenizer`; `place`: a folder or hub id."""
    own = _read_by_transformers(place, revision)
    tokenizer = AutoTokenizer.from_pretrained(
        place, revision=revision, trust_remote_code=trust_remote_code, **own, **arguments
    )
    return _with_special_tokens(tokenizer)


def read_processor(place: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A processor by `AutoProcessor`; `place`: a folder or hub id."""
    own = _read_by_transformers(place, revision)
    processor = AutoProcessor.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code, **own)
    if hasattr(processor, "tokenizer"):
        processor.tokenizer = _with_special_tokens(processor.tokenizer)
    return processor


def write_processor(processor: Any, folder: Path) -> None:
    """Save a processor, and the SentencePiece model that its tokenizer was read beside or from (`tokenizer.model`).

    Transformers reads `tokenizer.json`, which has all tokens; converters for other programs want the model. Not so
    `tekken.json`: where Mistral's library is installed it would be asked, and not the chat template.
    """
    processor.save_pretrained(folder)
    model = Path(getattr(getattr(processor, "tokenizer", None), "vocab_file", None) or "")
    if model.suffix == ".model" and model.is_file():
        shutil.copy(model, folder)


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
    """The tokenizer; one that was made of tekken.json alone with special tokens by name, and BOS before every text.

    Raises:
        ValueError: it was made of a SentencePiece model alone, and its class is not known, which says how texts begin.
    """
    file = str(getattr(tokenizer, "vocab_file", None))
    if (
        file.endswith(".model")
        and type(tokenizer) is TokenizersBackend
        and not Path(file).with_suffix(".json").is_file()
    ):
        raise ValueError(
            f"nothing beside {file} says whether texts begin with BOS, or with a space: put back the model's "
            "tokenizer_config.json, which names its tokenizer_class, or its tokenizer.json"
        )
    if not file.endswith(_FILE):
        return tokenizer
    named = convert_tekken_tokenizer(file)
    named.add_bos_token = True
    return named
