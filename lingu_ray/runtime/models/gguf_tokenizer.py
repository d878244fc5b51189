"""Tokenizers, those of GGUF files as llama.cpp has them: Transformers does not read all that the files say of them."""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf import read_gguf_metadata
from transformers.utils import cached_file

from lingu_ray.processors import read_tokenizer

log = logging.getLogger(__name__)

_DIGITS_APART = frozenset(("smollm", "starcoder", "refact", "codeshell", "command-r", "exaone", "minerva-7b"))
"""Vocabularies, by llama.cpp's names, whose merges were learned with every digit apart, and else as GPT-2's."""
_AS_GPT_2 = frozenset(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum", "a.x-4.0"))
"""Those that are split as GPT-2's, and no more."""
_AS_LLAMA_3 = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "tekken", "pixtral", "falcon3", "falcon-h1", "midm-2.0", "lfm2")
)
"""Vocabularies of bytes in which a word that is a token is that token, whatever the merges make of it, and whose texts
begin with BOS where the file does not say.
"""


def load_tokenizer(place: str, **arguments: Any) -> PreTrainedTokenizerBase:
    """A tokenizer by `read_tokenizer`, that of a GGUF file as llama.cpp has it (see `_as_stated`)."""
    tokenizer = read_tokenizer(place, **arguments)
    if (gguf_file := arguments.get("gguf_file")) is not None:
        file = str(cached_file(place, gguf_file, revision=arguments.get("revision")))
        _as_stated(tokenizer, metadata := read_gguf_metadata(file)[0])
        _warn_of_splits(tokenizer, metadata, gguf_file)
    return tokenizer


def _as_stated(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Let the tokenizer split as its vocabulary was made, and add what the file says: BOS, EOS, a space at the start.

    Transformers takes splits that it does not know for GPT-2's, which are others where a blank line comes before a
    digit, or two spaces; it merges words that are tokens; and it adds neither BOS nor EOS, but always the space.
    """
    pre, is_sentencepiece = metadata.get("tokenizer.ggml.pre"), metadata.get("tokenizer.ggml.model") == "llama"
    if pre in _DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        as_gpt_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, as_gpt_2])
    if pre in _AS_LLAMA_3:
        tokenizer.backend_tokenizer.model.ignore_merges = True
    if is_sentencepiece and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _begin_without_space(tokenizer.backend_tokenizer)
    by_kind = is_sentencepiece or pre in _AS_LLAMA_3
    tokenizer.add_bos_token = metadata.get("tokenizer.ggml.add_bos_token", by_kind)
    tokenizer.add_eos_token = metadata.get("tokenizer.ggml.add_eos_token", False)


def _begin_without_space(backend: Any) -> None:
    """Let a vocabulary of SentencePiece take texts as they are, where it would put a space before them."""
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _warn_of_splits(tokenizer: Any, metadata: dict[str, Any], gguf_file: str) -> None:
    """Tell of a vocabulary of bytes whose splits are taken for GPT-2's, though the file does not say that they are."""
    pre, kind = metadata.get("tokenizer.ggml.pre"), metadata.get("tokenizer.ggml.model")
    taken = isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    if kind == "gpt2" and taken and pre not in _AS_GPT_2:
        log.warning(
            "%s: how its tokenizer splits text (tokenizer.ggml.pre: %s) is not known, and taken for GPT-2's: some "
            "tokens may be others than the model's; take the folder of the same model, with its tokenizer.json",
            *(gguf_file, pre),
        )
