"""Every causal LM of Transformers, small and random: continued exactly from its own KV, or refused with a reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import TEXT, shake
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lingu_ray.distill import UserError
from lingu_ray.distill.head import output_head
from lingu_ray.distill.pair import check_kind, check_text_only
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.rehearsal import rehearse_continuation

SIZES: dict[str, Any] = TEXT | {
    "head_dim": 16,
    "sliding_window": 6,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "tie_word_embeddings": False,
}
LARGEST = 2**24  # parameters of one whose other sizes have other names
KNOWN = {
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "granite",
    "olmo2",
    "phi3",
    "smollm3",
    "qwen3_moe",
}


def small(kind: type[PreTrainedConfig]) -> PreTrainedModel | None:
    """A small random model of this kind; None where these sizes make none."""
    known = {*kind.__dataclass_fields__, *kind.attribute_map}
    try:
        config = kind(**{name: size for name, size in SIZES.items() if name in known})
        with torch.device("meta"):
            large = AutoModelForCausalLM.from_config(config).num_parameters() > LARGEST
        return None if large else shake(AutoModelForCausalLM.from_config(config)).float()
    except Exception:  # each kind has conditions of its own, and what cannot be built is counted
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("error:An output with one or more elements was resized")  # never KV of other sizes
def test_every_causal_lm_is_continued_exactly_or_refused() -> None:
    """Nothing but a `UserError` refuses one, and those that people build VLMs on are not refused, nor are they before a
    run, by a smaller one of their kind."""
    outcomes, taught = Counter[str](), set()
    for kind in dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING.keys()):
        torch.manual_seed(0)
        if (model := small(kind)) is None:
            outcomes["not built"] += 1
            continue
        try:
            check_text_only(model.config, "teacher")
            check_kind(model.config, "teacher")
            output_head(model)
            Teacher(model)
        except UserError as error:
            outcomes["refused"] += 1
            assert str(error)
        else:
            taught.add(kind.model_type)
            rehearse_continuation(model.config)  # refuses none of these
    assert taught >= KNOWN, KNOWN - taught
    assert len(taught) > 60 and outcomes["refused"] > 20 and outcomes["not built"] < 60, (len(taught), outcomes)
