"""What a run that is too large is told: settings that would take less, none of them one that cannot be set."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tinyrun

from lingu_ray.cost.devices import GPUS
from lingu_ray.cost.estimate import Estimate, estimate_of
from lingu_ray.cost.models import read_models
from lingu_ray.cost.table import lines
from lingu_ray.cost.trace import decoder_pass
from lingu_ray.cost.workload import RowConfig
from lingu_ray.errors import UserError

pytestmark = pytest.mark.slow  # traces a model for each change of settings

ROW = RowConfig(text_tokens=60, answer_tokens=20)
NO_MEMORY = replace(GPUS["l4"], memory=1.0)
LORA, FSDP2, IPC = "train.lora.rank", "train.parallelism", "teacher.transport"
COPIED = {
    "teacher": {"transport": "object_store", "look_ahead": 0, "micro_batches_per_call": 8},
    "train": {"rows_per_step": 99},
}
"""A run in which the copies of KV take most."""


@pytest.fixture
def too_large(pair: Path, tmp_path: Path, models_of: Any) -> Any:
    """Estimates a run on a GPU that holds nothing."""

    def too_large(**settings: Any) -> Estimate:
        config = tinyrun.config(pair, tmp_path, **settings)
        return estimate_of(config, ROW, NO_MEMORY, models_of(config))

    return too_large


def offered(found: Estimate) -> set[str]:
    """Keys of the settings that are offered."""
    return {word.partition("=")[0] for words, _ in found.changes() for word in words.split()}


@pytest.mark.parametrize(
    ("settings", "never"),
    [
        ({"teacher": {"placement": "node"}}, [IPC]),
        ({"train": {"learning_rates": {"decoder": 0.0, "projector": 1e-3}}}, [LORA, FSDP2]),
        ({"train": {"rows_per_step": 2}}, [FSDP2]),
        ({"ray": {"gpus_per_worker": 0.5, "num_workers": 2}}, [FSDP2]),
        ({"ray": {"gpus_per_worker": 2}} | COPIED, [IPC]),
    ],
    ids=str,
)
def test_only_what_the_settings_allow_is_offered(too_large: Any, settings: dict[str, Any], never: list[str]) -> None:
    """Others that take less are, whatever this run forbids."""
    found = offered(too_large(**settings))
    assert not found.intersection(never) and "train.precision" in found


def test_where_it_can_be_set_it_is_offered(too_large: Any) -> None:
    """What the cases above leave out."""
    assert {LORA, FSDP2, IPC} <= offered(too_large(**COPIED))


def test_adapters_are_not_offered_without_their_package(too_large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA cannot be estimated where peft is missing; the others can."""
    monkeypatch.setitem(sys.modules, "peft", None)
    found = offered(too_large())
    assert LORA not in found and "train.gradient_checkpointing" in found


def test_a_decoder_without_checkpointing_is_not_offered_it(too_large: Any) -> None:
    """And a run that sets it is told so."""
    found = too_large()
    found = replace(found, models=read_models(found.config))  # its own, as it is changed
    decoder = found.models.student.decoder
    decoder.supports_gradient_checkpointing = False
    assert "train.gradient_checkpointing" not in offered(found)
    with pytest.raises(UserError, match=r"train\.gradient_checkpointing=true: Llama\w+ does not support it"):
        decoder_pass(decoder, 1, 8, masked=False, bf16=False, checkpointing=True)


def test_a_large_engine_is_offered_half_of_it(too_large: Any) -> None:
    """Where the evaluation takes most, bf16 there is what helps, and nothing that changes the training alone."""
    tasks = {"tasks": ["arc_easy"], "tokens_per_batch": 10**7}
    assert offered(too_large(evaluation=tasks)) == {"evaluation.precision"}
    assert "evaluation.precision" not in offered(too_large(evaluation={"tasks": ["arc_easy"], "tokens_per_batch": 160}))
    least = " ".join(" ".join(lines(too_large(evaluation=tasks | {"precision": "bf16"}))).split())  # however it is cut
    assert "No single setting takes less." in least and "Each of these" not in least and " rates " in least


def test_memory_is_told_before_what_would_take_less(too_large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing that befalls the suggestions hides it."""
    monkeypatch.setattr(Estimate, "changes", lambda self: (_ for _ in ()).throw(RuntimeError("planted")))
    told = []
    with pytest.raises(RuntimeError, match="planted"):
        for line in lines(too_large()):
            told.append(line)
    assert any(line.startswith("host") for line in told)
