"""Kinds of tokenizers and of chat templates that students come with, in miniature and in own words.

Each tokenizer is trained on Python's help pages; each template behaves as the published one of its name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pydoc_data.topics import topics
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# All that the templates write.
MARKERS = (
    "<image>",
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|vision_start|>",
    "<|vision_end|>",
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _texts() -> list[str]:
    """Line by line, as SentencePiece reads: no token goes from one line into the next, whichever Python's pages these
    are."""
    return [line for name in sorted(topics)[:20] for line in topics[name].splitlines(keepends=True)]


@cache
def _byte_level() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(), trainer)
    return core.to_str()


@cache
def _sentencepiece() -> str:
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", BOS, EOS, PAD, *BYTES]
    core.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    return core.to_str()


def _with_markers(core: Tokenizer) -> Tokenizer:
    core.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return core


def byte_level(trim_offsets: bool = False) -> Tokenizer:
    """GPT-2, Llama 3, Qwen, SmolLM: spaces are part of words; with `trim_offsets` they are not part of offsets."""
    core = Tokenizer.from_str(_byte_level())
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return _with_markers(core)


def prepending() -> Tokenizer:
    """Llama 2, Vicuna, Mistral 7B, converted as `legacy`: a normalizer writes `▁` before every piece of text."""
    core = Tokenizer.from_str(_sentencepiece())
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _with_markers(core)


def metaspace(scheme: str) -> Tokenizer:
    """Zephyr, Phi-3, Gemma: `▁` before the first piece of text (`first`), every one (`always`), or none (`never`)."""
    core = Tokenizer.from_str(_sentencepiece())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return _with_markers(core)


@cache
def _unigram() -> str:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", BOS, EOS, PAD]
    core.train_from_iterator(
        _texts(),
        trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return core.to_str()


def unigram() -> Tokenizer:
    """XLM-R, T5: words split at spaces, each with its `▁`."""
    return _with_markers(Tokenizer.from_str(_unigram()))


CORES: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_level_trimmed": lambda: byte_level(trim_offsets=True),
    "prepending": prepending,
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_never": lambda: metaspace("never"),
    "unigram": unigram,
}
ADDS = {"nothing": "$A", "bos": f"{BOS} $A", "eos": f"$A {EOS}", "both": f"{BOS} $A {EOS}"}


@cache
def tokenizer_of(kind: str, adds: str = "nothing") -> PreTrainedTokenizerFast:
    """A tokenizer of one of `CORES` that adds one of `ADDS` to texts."""
    core = CORES[kind]()
    if adds != "nothing":
        ids = [(token, core.token_to_id(token)) for token in (BOS, EOS)]
        adding = processors.TemplateProcessing(single=ADDS[adds], special_tokens=ids)
        core.post_processor = processors.Sequence([core.post_processor, adding]) if core.post_processor else adding
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def _loop(body: str, prompt: str = "") -> str:
    tail = "{% if add_generation_prompt %}" + prompt + "{% endif %}" if prompt else ""
    return "{% for m in messages %}" + body + "{% endfor %}" + tail


def _parts(image: str = "<image>") -> str:
    return (
        "{% for p in m.content %}{% if p.type == 'image' %}" + image + "{% else %}{{ p.text }}{% endif %}{% endfor %}"
    )


_IMAGES_FIRST = "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
_INSTRUCTION = "[INST] {{ m.content }} [/INST]"
_ALTERNATING = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
)

TEMPLATES: dict[str, str] = {
    # images, then text, and nothing ends an answer
    "vicuna": _loop(
        "{% if m.role != 'system' %}{{ m.role | upper }}: {% endif %}"
        "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}{% for p in m.content if p.type == 'text' %}"
        "{% if m.role == 'user' %}{{ p.text }} {% else %}{% generation %}{{ p.text }} {% endgeneration %}{% endif %}"
        "{% endfor %}",
        "ASSISTANT:",
    ),
    # a space in the header of turns that the generation prompt lacks
    "onevision": _loop(
        "<|im_start|>{{ m.role }} " + _IMAGES_FIRST + "{% for p in m.content if p.type == 'text' %}"
        "{% if m.role != 'assistant' %}{{ '\n' + p.text }}"
        "{% else %}{% generation %}{{ '\n' + p.text }}{% endgeneration %}{% endif %}{% endfor %}<|im_end|>",
        "<|im_start|>assistant\n",
    ),
    "chatml": _loop("<|im_start|>{{ m.role }}\n" + _parts() + "<|im_end|>\n", "<|im_start|>assistant\n"),
    "llava_next_mistral": _loop(
        "{% if m.role == 'system' %}<<SYS>>\n{{ m.content[0].text }}\n<</SYS>>\n\n{% elif m.role == 'user' %}[INST] "
        "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %} [/INST]"
        "{% else %} {{ m.content[0].text }}</s>{% endif %}"
    ),
    "zephyr": "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    # without a generation prompt, EOS ends the conversation
    "phi3": _loop("{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}")
    + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    # trims, and writes BOS before every question
    "llama2": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() }} [/INST]"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}"
    + _loop(
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": "{{ bos_token }}"
    + _loop(
        _ALTERNATING + "{% if m.role == 'user' %}" + _INSTRUCTION + "{% else %}{{ m.content + eos_token }}{% endif %}"
    ),
    # parts in questions, a string in answers
    "pixtral": "{{ bos_token }}"
    + _loop(
        "{% if m.role == 'user' %}[INST]" + _parts() + "[/INST]{% elif m.role == 'assistant' %}"
        "{{ m.content + eos_token }}{% else %}{{ m.content }}\n\n{% endif %}"
    ),
    "gemma": "{{ bos_token }}"
    + _NO_SYSTEM
    + _loop(
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "qwen2_vl": _loop(
        "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        + _parts("<|vision_start|><image><|vision_end|>")
        + "{% endif %}<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    # an empty block of thoughts before the last answer alone; earlier thoughts are dropped
    "qwen3": _loop(
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] %}"
        "{% set thought = m.content.split('</think>')[0] if '</think>' in m.content else '' %}"
        "{% if loop.last %}{{ '<think>\n' + thought.split('<think>')[-1].strip('\n') + '\n</think>\n\n' }}{% endif %}"
        "{{ said.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "smolvlm": "<|im_start|>"
    + _loop(
        "{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
        + _parts()
        + "<end_of_utterance>\n",
        "Assistant:",
    ),
}

# Roles whose content is a string; all others take parts.
_ALL = {"system", "user", "assistant"}
TAKES_STRINGS: dict[str, set[str]] = {
    **{name: _ALL for name in ("zephyr", "phi3", "llama2", "llama3", "mistral", "gemma", "qwen3")},
    "pixtral": {"system", "assistant"},
}
# What ends an answer.
ENDS: dict[str, str] = {
    **dict.fromkeys(("vicuna", "llava_next_mistral", "zephyr", "llama2", "mistral", "pixtral"), EOS),
    **dict.fromkeys(("onevision", "chatml", "qwen2_vl", "qwen3"), "<|im_end|>"),
    **{"phi3": "<|end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "smolvlm": "<end_of_utterance>"},
}


def processor_with(tokenizer: PreTrainedTokenizerFast, template: str | None) -> Any:
    """A LLaVA processor for the tokenizer: 16 image tokens an image of any size."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    square = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=square)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
