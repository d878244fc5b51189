"""A processor's batch, checked and brought into the method's form.

The conventions are those of Transformers: `labels` are aligned with `input_ids` and -100 where nothing is supervised;
the loss shifts them by one. Padding may be on either side, or on both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lingu_ray.distill.decoder import prompt_window
from lingu_ray.distill.inputs import ModelInputs, check_image_tokens, token_arguments
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError

NOT_SUPERVISED = -100
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_TOKENS = ("input_ids", "labels", "attention_mask", *_TOKEN_TYPES)
_COMPUTED_HERE = (
    *("position_ids", "cache_position", "inputs_embeds", "past_key_values", "cache"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),  # of rows that are packed
)


def visual_token_ids(student: PreTrainedModel) -> list[int]:
    """The ids whose embeddings image (or audio) features replace, as the model's configuration names them.

    Raises UserError when it names none.
    """
    named = (getattr(student.config, f"{kind}_token_id", None) for kind in ("image", "audio"))
    ids = [i for i in named if isinstance(i, int)]
    if not ids:
        raise UserError(
            f"student: the configuration of {type(student).__name__} names no image token: set its image_token_id, or "
            "audio_token_id, to the id that the processor writes for images"
        )
    return ids


def read_batch(batch: Mapping[str, Any], student: Student, longest: int | None) -> ModelInputs:
    """The batch as the student's inputs: ids and masks on the CPU, `[B, T]` with padding on the right.

    Args:
        batch: what the student's processor returned as tensors, with `labels`. `attention_mask` may be left out where
            nothing is padded. Token types are derived from labels and images; given ones must agree.
        student: the student that it is for.
        longest: tokens that a row may have (`longest_row`); None: any number.

    Raises:
        UserError: a tensor is missing, or has the wrong shape, dtype or values; the message names it.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
        raise UserError(f"batch: must be a processor's tensors by name, with labels; it is a {type(batch).__name__}")
    given = {name: value for name, value in batch.items() if value is not None}
    if "distill" in given:
        raise UserError("distill: give the rows' mask beside the batch, distiller(batch, distill=mask)")
    for name in _COMPUTED_HERE:
        if name in given:
            raise UserError(f"{name}: leave it out; give each sample a row of its own, with input_ids and labels")
    ids_BT = _token_tensor(given, "input_ids")
    labels_BT = _token_tensor(given, "labels", shape=ids_BT.shape)
    real_BT = _attention_mask(given, ids_BT)
    column_BT = _columns_to_left(real_BT)
    ids_BT, labels_BT, real_BT = (tensor_BT.gather(1, column_BT) for tensor_BT in (ids_BT, labels_BT, real_BT))
    if longest is not None and ids_BT.shape[1] > longest:
        raise UserError(
            f"input_ids: a row has {ids_BT.shape[1]} tokens, and above {longest} the models have another RoPE "
            "(rope_type) by the longest row of a batch: cut it"
        )
    window = prompt_window(student.model.config)
    if window is not None and ids_BT.shape[1] > window:
        raise UserError(
            f"input_ids: a row has {ids_BT.shape[1]} tokens, above the {window} that PaliGemma's layers see: leave out "
            "rows that are longer"
        )
    visual_BT = torch.isin(ids_BT, ids_BT.new_tensor(visual_token_ids(student.model))) & real_BT
    vocabulary = student.output_head.vocabulary
    _check_ids(ids_BT, visual_BT, cast(nn.Embedding, student.model.get_input_embeddings()).weight.shape[0])
    _check_labels(labels_BT, ids_BT, real_BT, visual_BT, vocabulary)
    rows_B1 = torch.arange(len(ids_BT), device=ids_BT.device).unsqueeze(1)
    inputs = ModelInputs(
        input_ids_BT=ids_BT,
        sample_BT=torch.where(real_BT, rows_B1, -1),
        supervised_BT=labels_BT != NOT_SUPERVISED,
        visual_BT=visual_BT,
        vision=_vision(given, student),
    )
    if visual_BT.any() and not inputs.vision:
        raise UserError("the batch has image tokens and no images (pixel_values, …)")
    if inputs.vision and not visual_BT.any():
        raise UserError(f"{next(iter(inputs.vision))}: the batch has no image tokens: leave images out of such a batch")
    _check_grids(inputs, student)
    _check_token_types(given, inputs, column_BT, student)
    return inputs


def read_distill(distill: Tensor | Sequence[bool] | None, rows: int) -> Tensor:
    """`distill` as a bool tensor `[B]` on the CPU; None: all rows. Raises UserError for another shape or dtype."""
    if distill is None:
        return torch.ones(rows, dtype=torch.bool, device="cpu")
    try:
        mask_B = torch.as_tensor(distill, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:  # of text, of null, of lists of several lengths
        raise UserError(f"distill: must hold one bool for each of the {rows} rows; it is {distill!r:.80}") from error
    if mask_B.dtype != torch.bool or mask_B.shape != (rows,):
        raise UserError(
            f"distill: must hold one bool for each of the {rows} rows; it is {mask_B.dtype} of shape "
            f"{list(mask_B.shape)}"
        )
    return mask_B


def _columns_to_left(real_BT: Tensor) -> Tensor:
    """The columns to gather so that all padding is on the right, without those in which no row has a token."""
    first_B1 = real_BT.int().argmax(1, keepdim=True)
    columns = torch.arange(int(real_BT.sum(1).max()), device=real_BT.device)
    return (first_B1 + columns) % real_BT.shape[1]


def _token_tensor(given: Mapping[str, Any], name: str, shape: torch.Size | None = None) -> Tensor:
    """An int64 tensor `[B, T]` of the batch, on the CPU."""
    if name not in given:
        what = "the answers' ids, -100 elsewhere" if name == "labels" else "the token ids"
        raise UserError(f"{name}: the batch has none; add {what}, aligned with input_ids")
    value = given[name]
    if not isinstance(value, Tensor):
        raise UserError(f"{name}: must be a tensor, not a {type(value).__name__}: return_tensors='pt'")
    if value.is_floating_point() or value.is_complex() or (value.dtype == torch.bool and name != "attention_mask"):
        raise UserError(f"{name}: must hold integers; its dtype is {value.dtype}")
    if value.ndim != 2 or (shape is not None and value.shape != shape) or not value.numel():
        wanted = "[rows, tokens]" if shape is None else f"{list(shape)}, as input_ids"
        raise UserError(f"{name}: must have the shape {wanted}; it has {list(value.shape)}")
    return value.cpu().long()


def _attention_mask(given: Mapping[str, Any], ids_BT: Tensor) -> Tensor:
    """Where there is a token (bool): without gaps, and at least one in each row."""
    if "attention_mask" not in given:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT = _token_tensor(given, "attention_mask", shape=ids_BT.shape)
    if not ((mask_BT == 0) | (mask_BT == 1)).all():
        raise UserError("attention_mask: must be 1 on tokens and 0 on padding")
    starts_B = mask_BT.diff(dim=1, prepend=mask_BT.new_zeros(len(mask_BT), 1)).eq(1).sum(1)
    if (starts_B != 1).any():
        row = int((starts_B != 1).nonzero()[0])
        why = "has no token" if not starts_B[row] else "has padding between its tokens"
        raise UserError(f"attention_mask: row {row} {why}; padding belongs before or after the tokens")
    return mask_BT.bool()


def _check_ids(ids_BT: Tensor, visual_BT: Tensor, embedded: int) -> None:
    """Refuse ids that no embedding has, of padding too; images are put in the place of theirs."""
    wrong = (((ids_BT < 0) | (ids_BT >= embedded)) & ~visual_BT).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise UserError(
            f"input_ids: {int(ids_BT[row, column])} at row {row}, token {column} is no id of the student, whose "
            f"embeddings have {embedded} rows: take the student's own processor"
        )


def _check_labels(labels_BT: Tensor, ids_BT: Tensor, real_BT: Tensor, visual_BT: Tensor, vocabulary: int) -> None:
    supervised_BT = labels_BT != NOT_SUPERVISED
    outside_BT = (labels_BT < 0) | (labels_BT >= vocabulary)
    reasons = {
        f"lies outside the student's vocabulary of {vocabulary} ids; where nothing is learned it is -100": outside_BT,
        "is on padding: set it to -100": ~real_BT,
        "is on an image token, which nobody has to predict: set it to -100": visual_BT,
        "differs from input_ids there: student and teacher read the label as the next token. Labels are not shifted, "
        "and -100 where nothing is learned": labels_BT != ids_BT,
    }
    for reason, where_BT in reasons.items():
        wrong = (where_BT & supervised_BT).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise UserError(f"labels: {int(labels_BT[row, column])} at row {row}, token {column} {reason}")


def _vision(given: Mapping[str, Any], student: Student) -> dict[str, Tensor]:
    """What the batch holds beside its tokens; all of it is for the vision tower."""
    taken = inspect.signature(student.body.forward).parameters
    beside = {name: value for name, value in given.items() if name not in _TOKENS}
    for name, value in beside.items():
        if "video" in name:
            raise UserError(f"{name}: videos are not supported, images are")
        if name not in taken:
            raise UserError(f"{name}: {type(student.body).__name__} takes no such input; take it out of the batch")
        if not isinstance(value, Tensor):
            raise UserError(f"{name}: must be a tensor, not a {type(value).__name__}: return_tensors='pt'")
    return {name: value for name, value in beside.items() if value.numel()}  # of no image: as if it were not there


def _check_grids(inputs: ModelInputs, student: Student) -> None:
    """The sizes of the images, where the batch has them, must ask for as many tokens as there are."""
    grid_I3 = inputs.vision.get("image_grid_thw")
    if grid_I3 is None:
        return
    merged = getattr(student.model.config.vision_config, "spatial_merge_size", None)
    if merged is not None:
        check_image_tokens(inputs, int(grid_I3.prod(1).sum()) // merged**2)


def _check_token_types(given: Mapping[str, Any], inputs: ModelInputs, column_BT: Tensor, student: Student) -> None:
    """Token types that the student reads must be those derived here; others have no effect."""
    derived = token_arguments(student.body, inputs)
    for name in _TOKEN_TYPES:
        if name in given and name in derived:
            types_BT = _token_tensor(given, name, shape=given["input_ids"].shape).gather(1, column_BT)
            if ((types_BT != derived[name]) & (inputs.sample_BT >= 0)).any():
                raise UserError(f"{name}: differs from what follows from labels and images; leave it out of the batch")
