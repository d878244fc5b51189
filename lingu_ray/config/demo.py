"""Settings of the embedded demo."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from lingu_ray.config.base import Section


class DemoConfig(Section):
    """The embedded demo: a teacher, a student and a corpus that are built on this machine, offline."""

    hidden_size: PositiveInt = Field(160, description="width of the small LM")
    layers: PositiveInt = Field(4, description="layers of the small LM")
    heads: PositiveInt = Field(5, description="attention heads of the small LM (head dimension 32)")
    vocabulary: PositiveInt = Field(2048, description="byte-level BPE tokens")
    teacher_steps: PositiveInt = Field(550, description="steps of 8 × 96 tokens that train the teacher")
    adapt_steps: PositiveInt = Field(300, description="steps that turn the teacher into a VLM, and make it forget")
    cloze_items: PositiveInt = Field(800, description="held-out four-way cloze items")
    word_items: PositiveInt = Field(500, description="held-out sentences whose next word a chat asks for")
    vision_items: PositiveInt = Field(500, description="held-out image questions of each kind")
