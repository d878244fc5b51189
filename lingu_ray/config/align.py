"""Settings of the alignment, which teaches a new projector before training to write what the decoder can read."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from lingu_ray.config.base import Section, rule


class AlignRates(Section):
    """One learning rate per parameter group; 0 freezes the group."""

    vision: float = Field(1e-4, ge=0, description="the last blocks of the vision tower")
    projector: float = Field(1e-3, ge=0, description="what maps image features to the decoder's width")


class AlignConfig(Section):
    """The alignment: image tokens learn to say the corpus's answers in the decoder's own embeddings."""

    epochs: PositiveInt = Field(3, description="passes over the pictures")
    pictures_per_step: PositiveInt = Field(64, description="pictures of one optimizer step")
    learning_rates: AlignRates = Field(AlignRates(), description="by parameter group; the decoder is frozen")
    blocks: NonNegativeInt = Field(3, description="last blocks of the vision tower that learn beside the projector")
    max_rows: PositiveInt = Field(50_000, description="rows of the corpus that are read, the first ones of its order")

    @rule
    def _something_learns(self) -> AlignConfig:
        if not self.learning_rates.projector and not (self.learning_rates.vision and self.blocks):
            raise ValueError("nothing learns: set align.learning_rates.projector above 0, or leave align out")
        return self
