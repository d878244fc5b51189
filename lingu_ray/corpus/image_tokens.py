"""What a processor makes of images: the text of their image tokens, and the tensors for the vision tower."""

from __future__ import annotations

import sys
from typing import Any

from PIL import Image
from torch import Tensor

from lingu_ray.corpus.chat_template import CannotEncode

# Everything else that a processor returns is for the vision tower.
_TOKEN_KEYS = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "labels",
    "text_replacement_offsets",
}
PIXEL_MASK = "pixel_attention_mask"
KNOWN_SIZES = 65536  # image sizes whose texts are cached
Size = tuple[int, int]  # width, height


class ImageTokens:
    """Asks a processor about images, apart from any text. Has no state but a cache: threads may share it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._known: dict[tuple[Size, bool], str] = {}

    def texts(self, sizes: list[Size]) -> list[str]:
        """What the processor writes in place of each image token, in a conversation with images of these sizes.

        The images themselves are not processed: each size is tried once with a blank image, alone and beside another
        one, since LLaVA-OneVision cuts only a single image into tiles.

        Raises:
            CannotEncode: the processor refuses an image of such a size.
        """
        alone = len(sizes) == 1
        return [self._known.get((size, alone)) or self._tried(size, alone) for size in sizes]

    def tensors(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """What the student's forward takes for the images (float32, int64 or bool); empty for none.

        Raises:
            CannotEncode: the processor refuses an image, or expands it in another way than one of the same size.
        """
        if not images:
            return {}
        texts, encoded = self._ask(images)
        for image, text in zip(images, texts, strict=False):
            self._remember(image.size, len(images) == 1, text)
        if texts != self.texts([image.size for image in images]):
            raise CannotEncode(f"{type(self.processor).__name__} expands an image by more than its size")
        # the processor's pixel mask is int64, 8 bytes a pixel
        masks = {key: value.bool() for key, value in encoded.items() if key == PIXEL_MASK}
        return {key: value for key, value in encoded.items() if key not in _TOKEN_KEYS} | masks

    def _tried(self, size: Size, alone: bool) -> str:
        text = self._ask([Image.new("RGB", size)] * (1 if alone else 2))[0][0]
        return self._remember(size, alone, text)

    def _remember(self, size: Size, alone: bool, text: str) -> str:
        if len(self._known) >= KNOWN_SIZES:
            self._known.clear()
        return self._known.setdefault((size, alone), sys.intern(text))  # many sizes have the same text

    def _ask(self, images: list[Image.Image]) -> tuple[list[str], Any]:
        """The text for each image, and all that the processor returns."""
        name = type(self.processor).__name__
        try:
            encoded = self.processor(
                text=[self.processor.image_token * len(images)],
                images=[images],
                return_text_replacement_offsets=True,
                return_tensors="pt",
            )
        except Exception as error:  # processors raise many kinds
            raise CannotEncode(f"{name} refuses images of {[image.size for image in images]}: {error}") from error
        if "text_replacement_offsets" not in encoded:
            raise CannotEncode(f"{name} does not tell which tokens it writes for an image")
        return [found["replacement"] for found in encoded["text_replacement_offsets"][0]], encoded
