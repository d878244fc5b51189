"""nanoVLM's tokenizer, chat template and image transforms, as far as Idefics3's processor has them."""

from pathlib import Path
from typing import cast

from PIL.Image import Resampling
from transformers import AutoTokenizer, Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerBase

from lingu_ray.errors import UserError
from lingu_ray.hub import HUB_ERRORS, why_not_had
from lingu_ray.nanovlm.checkpoint import Settings
from lingu_ray.paths import ask_hub

_FAKE, _IMAGE, _GLOBAL = "<fake_token_around_image>", "<image>", "<fake_token_around_image><global-img>"

# nanoVLM's prompt before it had chat templates.
_QUESTION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ 'Question: ' + message['content'] + ' Answer:' }}{% endif %}{% endfor %}"
)
# nanoVLM's templates take only text. This turns parts into text; several images of a message are numbered, as there.
_MESSAGES, _CONTENT = "{% for message in messages %}", "message['content']"
_PARTS = (
    "{% set said = namespace(text='', images=0) %}{% if message['content'] is string %}"
    "{% set said.text = message['content'] %}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    "{% if message['content'] | selectattr('type', 'equalto', 'image') | list | length > 1 %}"
    "{% set said.text = said.text + '<image: ' ~ said.images ~ '>' %}{% endif %}"
    "{% set said.text = said.text + '<image>' %}{% set said.images = said.images + 1 %}"
    "{% else %}{% set said.text = said.text + part['text'] %}{% endif %}{% endfor %}{% endif %}"
)


def build_processor(settings: Settings, path: str) -> Idefics3Processor:
    """The processor of a nanoVLM with the tokenizer at `path` (folder or hub id).

    Raises:
        UserError: there is no tokenizer, or not the one that the checkpoint was trained with.
    """
    if on_hub := not Path(path).is_dir():
        ask_hub("tokenizer", path)
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, trust_remote_code=False))
    except HUB_ERRORS as error:
        why = why_not_had(error) if on_hub else error
        raise UserError(f"tokenizer={path}: cannot be loaded. {why}") from error
    tokenizer.pad_token = tokenizer.eos_token
    add_tokens(tokenizer, settings)
    tokenizer.chat_template = template_with_images(settings.get("lm_chat_template") or _QUESTION)
    tokens = (settings["vit_img_size"] // settings["vit_patch_size"] // settings["mp_pixel_shuffle_factor"]) ** 2
    images = build_image_processor(settings)
    return Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=tokenizer.chat_template)


def add_tokens(tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
    """Add nanoVLM's tokens with the ids they have there, then the additional ones of Idefics3."""
    old = len(tokenizer)
    tokens = [_token(key, token) for key, token in settings.get("vlm_extra_tokens", {}).items()]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    new = old + len(tokens)
    if tokenizer.convert_tokens_to_ids(tokens) != list(range(old, new)) or new > settings["lm_vocab_size"]:
        raise UserError(
            f"the tokenizer's {old} tokens and nanoVLM's {len(tokens)} do not make the vocabulary of the checkpoint, "
            f"lm_vocab_size={settings['lm_vocab_size']}; it was trained with tokenizer={settings['lm_tokenizer']}"
        )
    besides = [token for token in (_IMAGE, _GLOBAL, _FAKE, "<end_of_utterance>") if token not in tokens]
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens, *besides]})


def _token(key: str, token: str) -> str:
    """What Idefics3's processor writes where nanoVLM writes `token`; Idefics3 starts rows of tiles on a new line."""
    if key in ("image_token", "global_image_token"):
        return _IMAGE if key == "image_token" else _GLOBAL
    if not token.startswith("<row_"):
        return token
    starts_line = token.endswith("_col_1>") and token != "<row_1_col_1>"
    return "\n" * starts_line + _FAKE + token


def template_with_images(template: str) -> str:
    """nanoVLM's chat template, taking content as text or as parts (`{"type": "image"}`, `{"type": "text", …}`)."""
    if _MESSAGES not in template or _CONTENT not in template:
        raise UserError(f"lm_chat_template must have {_MESSAGES} and {_CONTENT}, so that images can be put in")
    return template.replace(_CONTENT, "said.text").replace(_MESSAGES, _MESSAGES + _PARTS)


def build_image_processor(settings: Settings) -> Idefics3ImageProcessorPil:
    """nanoVLM's resizing and tiles; checkpoints without `max_img_size` show each image as one square."""
    splits = "max_img_size" in settings
    return Idefics3ImageProcessorPil(
        do_resize=splits and settings.get("resize_to_max_side_len", False),
        do_image_splitting=splits,
        size={"longest_edge": settings.get("max_img_size", settings["vit_img_size"])},
        max_image_size={"longest_edge": settings["vit_img_size"]},
        resample=Resampling.BICUBIC if splits else Resampling.BILINEAR,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
