"""The student's chat template: it finds the template, detects how it takes content, and renders conversations."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cached_property
from typing import Any

from lingu_ray.corpus.row import PLACEHOLDER, Messages, placeholders
from lingu_ray.errors import UserError

# Content as a string or as parts; `<image>` stands for the student's image token.
_TEXT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
# For students that come without a chat template.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: " + _TEXT + ""
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# PaliGemma reads all images first, then BOS, and a newline ends a question. Where there are images, its processor
# writes BOS and the last newline itself; with `expanded` the template writes all that the model reads.
PALIGEMMA_TEMPLATE = (
    "{% set all = namespace(images=0, texts=[]) %}{% for message in messages %}{% set text %}" + _TEXT + "{% endset %}"
    "{% set all.images = all.images + text.count('<image>') %}"
    "{% set all.texts = all.texts + [text.replace('<image>', '')] %}{% endfor %}"
    "{% set complete = expanded or not all.images %}"
    "{{ '<image>' * all.images }}{% if complete %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ all.texts[loop.index0] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif complete or not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
NOW = datetime(2024, 7, 26)
"""The date that templates print, as tokens must not depend on the day. It is the default in Llama 3's templates."""
# A macro that replaces Transformers' function of that name. It ends with a line break, so that white space at the
# beginning of the template keeps its meaning.
_ON_ONE_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('%{one}', '{NOW.strftime(f'%{one}')}')" for one in ("-d", "-m", *"aAbBcdDefFhHIjmMpSTuwxXyY"))
    + " }}{% endmacro %}\n"
)
_PROBE = "2718281828"  # a text that no template writes itself or changes
_PROBES: dict[str, Messages] = {
    "user": [{"role": "user", "content": _PROBE}],
    "assistant": [{"role": "user", "content": "1"}, {"role": "assistant", "content": _PROBE}],
    "system": [{"role": "system", "content": _PROBE}, {"role": "user", "content": "1"}],
}


def on_one_day(template: str) -> str:
    """The template with `NOW` in place of the current time."""
    return _ON_ONE_DAY + template if "strftime_now" in template else template


class CannotEncode(ValueError):
    """A row cannot be encoded without doubt; the message says why."""


class ChatTemplate:
    """Renders conversations as a student reads them.

    `source`: the Jinja template; the student's own, or a fallback that Transformers can use as well.

    Raises:
        UserError: it has several templates, and none of them is the default.
    """

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        paligemma = type(processor).__name__ == "PaliGemmaProcessor"
        fallback = (PALIGEMMA_TEMPLATE if paligemma else FALLBACK_TEMPLATE).replace("<image>", self.image_token)
        template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template or fallback
        if isinstance(template, dict) and "default" not in template:
            raise UserError(
                f"chat template of {self.tokenizer.name_or_path or 'the model'}: there are {', '.join(template)}, and "
                "none is called default: write the one for plain conversations into chat_template.jinja of its folder"
            )
        self.source: str = template["default"] if isinstance(template, dict) else template
        self._dated = on_one_day(self.source)
        self._expanded = paligemma and self.source == fallback

    def render(self, messages: Messages, add_generation_prompt: bool = False, expanded: bool = True) -> str:
        """Render a conversation, one image token an image.

        `expanded`: write all that the model reads, also what only its processor would add (PaliGemma's).

        Raises:
            CannotEncode: the template refuses the conversation.
        """
        try:
            return self._render(messages, self._takes_parts, add_generation_prompt, expanded)
        except Exception as error:  # of Jinja, of the template itself, and of Python in its expressions
            raise CannotEncode(f"the chat template refuses the conversation: {error}") from error

    def _render(
        self, messages: Messages, takes_parts: dict[str, bool], add_generation_prompt: bool, expanded: bool
    ) -> str:
        conversation = [
            {
                "role": message["role"],
                "content": self._parts(message["content"])
                if takes_parts[message["role"]]
                else message["content"].replace(PLACEHOLDER, self.image_token),
            }
            for message in messages
        ]
        return self.tokenizer.apply_chat_template(
            conversation,
            chat_template=self._dated,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"expanded": expanded} if self._expanded else {}),
        )

    @staticmethod
    def _parts(text: str) -> list[dict[str, str]]:
        texts = text.split(PLACEHOLDER)
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(texts):
            parts += [{"type": "image"}] if index else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return parts or [{"type": "text", "text": ""}]  # templates look at the first part

    @cached_property
    def _takes_parts(self) -> dict[str, bool]:
        """For each role, whether the template takes content as parts (`{"type": "text", …}`) or as a string.

        User messages are given as parts, as VLMs' processors get them, unless the template leaves out their images.
        """
        takes = {"user": True, "assistant": False, "system": False}
        with_image = [{"role": "user", "content": PLACEHOLDER + _PROBE}]
        tried = ((with_image, True), (with_image, False), (_PROBES["user"], True), (_PROBES["user"], False))
        takes["user"] = next((parts for probe, parts in tried if self._reads(probe, takes | {"user": parts})), True)
        for role in ("assistant", "system"):
            takes[role] = self._reads(_PROBES[role], takes | {role: True})
        return takes

    def _reads(self, probe: Messages, takes_parts: dict[str, bool]) -> bool:
        """Whether the template renders the probe's text and image, without printing parts in Python's notation."""
        try:
            text = self._render(probe, takes_parts, add_generation_prompt=False, expanded=True)
        except Exception:  # see `render`
            return False
        written = re.search("['\"]type['\"]", text, re.IGNORECASE)
        return _PROBE in text and not written and text.count(self.image_token) == placeholders(probe)
