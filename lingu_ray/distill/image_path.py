"""The vision tower of a student: its blocks, what the decoder gets of an image, and all but the last blocks left out.

Nothing of it is of one family: image tokens are read where the decoder takes them, blocks are found by their list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.distill.student import Student


def image_tokens(student: Student, inputs: ModelInputs) -> Tensor:
    """`[K, D]`: what the decoder gets at the K visual positions of a micro-batch, row after row; nothing is decoded."""
    taken: list[Tensor] = []

    def take(*_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPast:
        taken.append(inputs_embeds)
        return BaseModelOutputWithPast(last_hidden_state=cast(Any, inputs_embeds))

    with _forward_of(student.decoder, take):
        student.body(**forward_arguments(student.body, inputs), use_cache=False)
    [embedding_BTD] = taken
    return embedding_BTD[inputs.visual_BT.to(embedding_BTD.device)]


def tower_blocks(student: Student) -> nn.ModuleList:
    """The transformer blocks of the vision tower: of its lists of modules the one with most parameters."""
    lists = [
        module
        for name, module in student.tower.named_modules()
        if isinstance(module, nn.ModuleList) and "merger" not in name
    ]
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


Kept = list[Tensor]
"""What went into the first of the last blocks, each time it was called in a pass."""


class LowerBlocks:
    """The tower's blocks below its last `upper` ones (at least 1): computed in one pass, left out in later ones.

    In those the images may be stand-ins (`stand_in`), so neither pixels nor the frozen blocks are needed again.
    """

    def __init__(self, student: Student, upper: int):
        blocks = tower_blocks(student)
        cut = max(0, len(blocks) - max(1, upper))
        self.lower, self.first = [*blocks[:cut]], blocks[cut]
        self._tuples = False

    @contextmanager
    def recorded(self) -> Iterator[Kept]:
        """Keep what the last blocks get in a pass inside the block, detached."""
        kept: Kept = []

        def keep(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept.append((arguments[0] if arguments else named["hidden_states"]).detach())

        def note(_: nn.Module, __: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)

        with ExitStack() as hooks:
            hooks.callback(self.first.register_forward_pre_hook(keep, with_kwargs=True).remove)
            for block in self.lower[-1:]:
                hooks.callback(block.register_forward_hook(note).remove)
            yield kept

    @contextmanager
    def left_out(self, kept: Kept) -> Iterator[None]:
        """Give the last blocks what was kept, in a pass inside the block over inputs of the same shapes."""
        given = iter(kept)

        def give(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            hidden = next(given)
            return ((hidden, *arguments[1:]), named) if arguments else ((), named | {"hidden_states": hidden})

        def skip(*arguments: Any, **named: Any) -> Any:
            hidden = arguments[0] if arguments else named["hidden_states"]
            return (hidden,) if self._tuples else hidden

        with ExitStack() as stack:
            stack.callback(self.first.register_forward_pre_hook(give, with_kwargs=True).remove)
            for block in self.lower:
                stack.enter_context(_forward_of(block, skip))
            yield


def stand_in(vision: dict[str, Tensor]) -> dict[str, Tensor]:
    """Vision tensors of the same shapes that take no memory: 1 in place of an image's values, 0 in place of padding.

    Sizes, grids and masks stay; of a mask that is the same everywhere one value is kept.
    """
    return {name: _ones(value) if value.is_floating_point() else _small(value) for name, value in vision.items()}


def _ones(value: Tensor) -> Tensor:
    inner = tuple(range(max(1, value.ndim - 3), value.ndim))
    flags = value != 0
    return flags.any(dim=inner, keepdim=True).to(value.dtype).expand(value.shape)


def _small(value: Tensor) -> Tensor:
    first = value.flatten()[:1].clone()
    return first.expand(value.shape) if (value == first).all() else value


@contextmanager
def _forward_of(module: nn.Module, forward: Any) -> Iterator[None]:
    """Another forward pass of one module, inside the block."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
