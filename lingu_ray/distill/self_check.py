"""A check that a decoder can be continued at all: half of a text from its own KV, against the text in one pass.

What the method assumes of a decoder (one key and value a position and layer, masks that follow from its configuration)
is asked of the configuration before anything is loaded (`pair`). Decoders that keep to it in another way than their
fields say are found here, on the loaded model, before it teaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lingu_ray.distill.capture import KVCapture, capturing, donate
from lingu_ray.distill.continuation import continue_from_kv, make_request
from lingu_ray.distill.decoder import field, sliding_window
from lingu_ray.distill.donation import Donation, plan_donation
from lingu_ray.errors import UserError, full_gpu

_TOKENS = 24
_WINDOW = 5  # of sliding layers while this runs, so that it has a part in so short a text
_RELATIVE, _RELATIVE_16_BIT = 0.05, 0.25  # of hidden states; one that is wrong differs by about their own size


@torch.no_grad()
def check_continuation(decoder: PreTrainedModel) -> None:
    """Raise UserError unless a decoder that continues from its own KV computes what it computes in one pass.

    It reads 24 ids, or as many as the decoder has positions. `decoder` is in eval mode; afterwards it is as it was, but
    that it can donate. One without weights (`meta`) is left alone.
    """
    if decoder.device.type == "meta":
        return
    tokens = min(_TOKENS, field(decoder.config, "max_position_embeddings") or _TOKENS)
    vocabulary = decoder.config.vocab_size
    ids_1T = torch.arange(tokens, device="cpu").mul(7919).remainder(vocabulary).unsqueeze(0)
    supervised_1T = torch.zeros_like(ids_1T, dtype=torch.bool)
    supervised_1T[:, tokens // 2 :] = True
    nowhere_1T, every_S = torch.zeros_like(supervised_1T), torch.ones_like(supervised_1T[0, :1])
    plan = plan_donation(ids_1T, torch.zeros_like(ids_1T), supervised_1T, nowhere_1T, every_S, vocabulary)
    assert plan is not None  # half of the tokens are supervised
    try:
        apart = _difference(decoder, ids_1T, plan)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the device's fault
    except (UserError, RuntimeError, TypeError, AttributeError, LookupError) as error:
        if full_gpu(error):
            raise
        raise UserError(f"{_cannot(decoder)}: {str(error).removeprefix('student: ')}") from error
    if not apart <= (_RELATIVE if decoder.dtype == torch.float32 else _RELATIVE_16_BIT):
        raise UserError(
            f"{_cannot(decoder)}: it computes something else than in one pass, hidden states differ by {apart:.0%}"
        )


def _cannot(decoder: PreTrainedModel) -> str:
    return f"teacher: {decoder.config.model_type} cannot be continued from its own keys and values"


def _difference(decoder: PreTrainedModel, ids_1T: Tensor, plan: Donation) -> float:
    """How far the hidden states of both ways lie apart, by their size.

    The median over tokens: experts of single tokens may be chosen otherwise, by rounding.
    """
    capture = KVCapture(decoder.config.num_hidden_layers, plan.donated_column_C.to(decoder.device))
    with _short_window(decoder), torch.autocast(decoder.device.type, enabled=False):
        with _donating(decoder), capturing(capture):
            output = decoder(input_ids=ids_1T.to(decoder.device), use_cache=False, return_dict=True)
        if (layer := capture.first_missing) is not None:
            raise UserError(f"layer {layer} did not donate its keys and values: it attends by code of its own")
        found_MD = continue_from_kv(decoder, make_request(plan, capture)).float()
    expected_MD = output.last_hidden_state[0, plan.query_column_Q.to(decoder.device)].float()
    apart_M = (found_MD - expected_MD).norm(dim=-1)
    return float((apart_M / expected_MD.norm(dim=-1).clamp(min=1e-12)).median())


@contextmanager
def _short_window(decoder: PreTrainedModel) -> Iterator[None]:
    """The decoder with a short window in its sliding layers, where it has some."""
    if (window := sliding_window(decoder.config)) is not None:
        decoder.config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        if window is not None:
            decoder.config.sliding_window = window


@contextmanager
def _donating(decoder: PreTrainedModel) -> Iterator[None]:
    """The decoder with the attention of a student."""
    own = str(decoder.config._attn_implementation)
    decoder.set_attn_implementation("eager" if own == "eager" else "sdpa")
    donate(decoder)
    try:
        yield
    finally:
        decoder.set_attn_implementation(own)
