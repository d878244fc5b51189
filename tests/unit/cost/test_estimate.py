"""`lingu-ray estimate`: from configurations alone, what fits and what does not, and what to change."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinyrun
import torch
from families import FAMILIES, SIGLIP
from tiny import IMAGE_TOKENS, tiny_student, tiny_teacher
from transformers import (
    AyaVisionConfig,
    Cohere2VisionConfig,
    Idefics2Config,
    Ovis2Config,
    PerceptionLMConfig,
    PreTrainedConfig,
)

from lingu_ray.config import Config
from lingu_ray.cost.devices import GIB, GPUS, gpu_here
from lingu_ray.cost.estimate import Estimate, estimate, estimate_of
from lingu_ray.cost.models import read_models, tower_of
from lingu_ray.cost.workload import RowConfig
from lingu_ray.errors import UserError
from lingu_ray.estimate import main

pytestmark = pytest.mark.slow  # traces models

ROW = RowConfig(text_tokens=60, answer_tokens=20)


@pytest.fixture
def on_h100(models_of: Any) -> Any:
    """Estimates a run on a GPU."""

    def on_h100(config: Config, **row: int) -> Estimate:
        return estimate_of(config, ROW.model_copy(update=row), GPUS["h100"], models_of(config))

    return on_h100


def items(found: Estimate, process: int) -> dict[str, float]:
    """Bytes of a process's items."""
    return {item.what: item.bytes for item in found.training[process].items}


def test_parameters_are_those_of_the_models(pair: Path, tmp_path: Path):
    """Counted on the meta device they are those of the real models; what is frozen, and adapters, as in training."""
    real = tiny_student(tiny_teacher())
    config = tinyrun.config(pair, tmp_path, train={"learning_rates": {"vision": 0.0}})
    models = read_models(config)
    assert sum(models.parameters.values()) == sum(p.numel() for p in real.parameters())
    assert models.trained["vision"] == 0 and models.trained["decoder"] == models.parameters["decoder"]
    adapters = read_models(tinyrun.config(pair, tmp_path, train={"lora": {"rank": 2}})).trained["decoder"]
    assert 0 < adapters < models.trained["decoder"] / 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_published_in_16_bits(precision: str, pair: Path, tmp_path: Path, on_h100: Any):
    """It is trained in float32 nonetheless: as the same model with weights of float32, but for what is exported."""
    for name, settings in (("teacher", {}), ("student", {"dtype": "bfloat16"})):
        published = json.loads((pair / name / "config.json").read_text(encoding="utf-8")) | settings
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(published), encoding="utf-8")
    train = {"precision": precision}
    found, plain = (on_h100(tinyrun.config(folder, tmp_path, train=train)) for folder in (tmp_path, pair))
    assert found.training[:-1] == plain.training[:-1] and found.time == plain.time


def test_a_folder_that_is_missing_is_no_matter_of_the_hub(tmp_path: Path):
    """The cure for a model on the hub is not told where another one cannot be found."""
    paths = {"student": {"path": "some/vlm"}, "teacher": {"path": str(tmp_path / "nowhere")}}
    with pytest.raises(UserError, match=r"teacher.path: no such file or folder: \S*nowhere$"):
        read_models(tinyrun.config(tmp_path, tmp_path, **paths))


def test_a_new_student_needs_no_tokenizer(pair: Path, tmp_path: Path):
    """`student.from_teacher`: the teacher's configuration makes the VLM's, decoder and image tokens alike."""
    config = tinyrun.config(pair, tmp_path, student=tinyrun.NEW_STUDENT)
    models, existing = read_models(config), read_models(tinyrun.config(pair, tmp_path))
    assert models.layer_parameters == existing.layer_parameters
    assert models.tower.tokens == IMAGE_TOKENS == existing.tower.tokens


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("idefics3", 4), ("llava", 16), ("internvl3", 4), ("gemma3", 4), ("paligemma2", 16), ("mistral3", 4)],
)
def test_image_tokens_of_a_view(name: str, tokens: int):
    """How many tokens each family makes of its square of 4 × 4 patches."""
    family = FAMILIES[name]
    tower = tower_of(family.config(family.decoder.to_dict()))
    assert (tower.patches, tower.tokens, tower.values_per_patch) == (16, tokens, 48)


@pytest.mark.parametrize(
    ("vlm", "tokens"),
    [
        (AyaVisionConfig(vision_config=SIGLIP | {"image_size": 364, "patch_size": 14}), 169),
        (Cohere2VisionConfig(vision_config=SIGLIP | {"image_size": 512, "patch_size": 16}), 256),
        (Idefics2Config(vision_config={"image_size": 980, "patch_size": 14}), 64),
        (Ovis2Config(vision_config={"image_size": 448, "patch_size": 14, "hidden_stride": 2}), 256),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_image_tokens_of_near_relatives(vlm: PreTrainedConfig, tokens: int):
    """Those that fold patches, or read them by a resampler, under other names."""
    assert tower_of(vlm).tokens == tokens


def test_a_tower_without_the_sizes_of_a_transformer_is_said():
    """A tower of timm's: no traceback."""
    with pytest.raises(UserError, match=r"student.path: the vision tower of perception_lm cannot be estimated"):
        tower_of(PerceptionLMConfig())


@pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if family.modality == "image"])
def test_every_family(name: str, tmp_path: Path, on_h100: Any):
    """Each family of students has an estimate, in which all processes need something."""
    family = FAMILIES[name]
    family.decoder.save_pretrained(tmp_path / "teacher")
    family.config(family.decoder.to_dict() | {"vocab_size": 325}).save_pretrained(tmp_path / "student")
    settings = {"train": {"precision": "bf16"}, "corpus": {"max_length": 64}}
    found = on_h100(tinyrun.config(tmp_path, tmp_path, **settings), image_tokens=16, text_tokens=20)
    assert found.fits and found.time.total > 0
    assert [process.name for process in found.training] == ["worker", "teacher", "host"]
    assert all(item.bytes > 0 for process in found.training for item in process.items)


def test_settings_move_memory(pair: Path, tmp_path: Path, on_h100: Any):
    """The teacher's place, the transport of KV, look-ahead and FSDP2 each show in the items that they change."""
    apart = on_h100(tinyrun.config(pair, tmp_path, teacher={"transport": "object_store"}))
    inside = on_h100(tinyrun.config(pair, tmp_path, teacher={"placement": "in_process"}))
    lent = on_h100(tinyrun.config(pair, tmp_path))  # transport=auto
    assert len(apart.training) == 3 and len(inside.training) == 2
    assert "the teacher's weights" in items(inside, 0) and "KV of a call, copied" not in items(lent, 1)
    assert "object store: KV" in items(apart, -1) and "object store: KV" not in items(lent, -1)
    one = on_h100(tinyrun.config(pair, tmp_path, teacher={"look_ahead": 0}))
    kept = "kept for the backward pass"
    assert items(apart, 0)[f"{kept}, 2 micro-batches"] == 2 * items(one, 0)[f"{kept}, 1 micro-batch"]
    asked = {"look_ahead": 0, "micro_batches_per_call": 3, "transport": "object_store"}
    three = on_h100(tinyrun.config(pair, tmp_path, teacher=asked, train={"rows_per_step": 100}))
    assert items(three, 0)[f"{kept}, 3 micro-batches"] == 3 * items(one, 0)[f"{kept}, 1 micro-batch"]
    assert items(three, 1)["KV of a call, copied"] == 3 * items(apart, 1)["KV of a call, copied"]
    sharded = on_h100(
        tinyrun.config(pair, tmp_path, train={"parallelism": "fsdp2"}, ray={"num_workers": 3, "use_gpu": True})
    )
    moments = "optimizer: two moments"
    assert items(sharded, 0)[moments] == pytest.approx(
        items(apart, 0)[moments] - 2 / 3 * 8 * apart.models.trained_layer_parameters
    )


SHARED = {"parallelism": "fsdp2"}


def test_layers_that_are_shared(pair: Path, tmp_path: Path, on_h100: Any):
    """Under FSDP2 they come rounded, so that no rounded copy of them is kept, and all at once to validate; gradients of
    a layer are whole until they are scattered."""

    def found(**train: Any) -> Estimate:
        settings = {"precision": "bf16", "tokens_per_micro_batch": 160, "rows_per_step": 2} | train
        config = tinyrun.config(pair, tmp_path, train=settings, ray={"num_workers": 2, "use_gpu": True})
        return on_h100(config, text_tokens=1, answer_tokens=1)

    apart, shared = found(), found(**SHARED)
    kept, rounded = "kept for the backward pass, 1 micro-batch", "trained weights, rounded to bf16"
    matrices = sum(p.numel() for p in apart.models.student.layers.parameters() if p.ndim > 1)
    assert items(apart, 0)[rounded] - items(shared, 0)[rounded] == 2 * matrices
    assert items(apart, 0)[kept] == items(shared, 0)[kept]
    alone, scattered = (items(found(precision="fp32", tokens_per_micro_batch=320, **more), 0) for more in ({}, SHARED))
    backward = "peak of a step on top: backward pass"
    of_layer = apart.models.layer_parameters / apart.models.text.num_hidden_layers
    assert scattered[backward] - alone[backward] == 8 * of_layer  # its gradients, and what of them is scattered
    adapted = found(**SHARED, gradient_checkpointing=True, lora={"rank": 1})
    small = items(adapted, 0)
    largest = small["peak of a step on top: all layers, gathered to validate"]
    assert largest + small[kept] == 2 * adapted.models.layer_parameters


def test_pictures_in_memory_are_those_of_steps_or_of_a_validation(pair: Path, tmp_path: Path, on_h100: Any):
    """Two steps ahead, and a third one, or micro-batches of a validation where these are more."""
    what, rows = "rows encoded ahead: pictures", (4, 40, 400)
    found = [on_h100(tinyrun.config(pair, tmp_path, train={"rows_per_step": count})) for count in rows]
    of_a_row = items(found[0], -1)[what] / (2 * 4 + 4 * found[0].load.rows)
    assert [each.load.rows for each in found] == [3, 3, 3]
    expected = [(2 * count + max(count, 4 * 3)) * of_a_row for count in rows]
    assert [items(each, -1)[what] for each in found] == pytest.approx(expected)


def test_the_host_of_a_gpu_loads_and_exports_the_models(pair: Path, tmp_path: Path, on_h100: Any):
    """It holds the teacher, or the student as it is published, whoever shares what is saved."""
    what = "more while models are loaded or exported"

    def found(**train: Any) -> Estimate:
        ray = {"num_workers": 4, "use_gpu": True}
        return on_h100(tinyrun.config(pair, tmp_path, train={"rows_per_step": 4} | train, ray=ray))

    plain, copied = found(), found(checkpoint="sharded")
    student = sum(plain.models.parameters.values())
    pictures = items(plain, -1)["rows encoded ahead: pictures"]
    assert pictures + items(plain, -1)[what] == pytest.approx(4 * student)  # published in float32
    assert items(copied, -1)[what] == items(plain, -1)[what]
    assert "copy of a checkpoint that is being written" in items(copied, -1)


def test_no_teacher_no_kv(pair: Path, tmp_path: Path, on_h100: Any):
    """Plain fine-tuning has neither teacher nor KV, and takes less time; an engine is there where tasks are."""
    plain = on_h100(tinyrun.config(pair, tmp_path, distill={"policy": "none"}))
    assert [process.name for process in plain.training] == ["worker", "host"]
    assert plain.engine is None and plain.time.kv == 0
    measured = on_h100(tinyrun.config(pair, tmp_path, evaluation={"tasks": ["arc_easy"]}))
    assert measured.engine is not None and measured.engine.items[0].bytes == 4 * sum(plain.models.parameters.values())
    assert plain.time.total < measured.time.total


def test_an_engine_that_sees_holds_what_its_tower_computes(pair: Path, tmp_path: Path, on_h100: Any):
    """Of a batch of pictures, where that is more than its tokens take, as patches are many and merged."""
    task = {"name": "seen", "kind": "vision", "type": "exact_match", "path": str(tmp_path)}

    def batch(*tasks: Any, patches: int) -> float:
        settings = {"tasks": tasks, "tokens_per_batch": 10**6}
        found = on_h100(tinyrun.config(pair, tmp_path, evaluation=settings), text_tokens=1, answer_tokens=1)
        found = replace(found, models=replace(found.models, tower=replace(found.models.tower, patches=patches)))
        assert found.engine is not None and found.load.tokens == IMAGE_TOKENS + 2
        return found.engine.items[1].bytes

    assert batch("arc_easy", patches=99) == batch("arc_easy", patches=1) == batch(task, patches=1)
    tower = on_h100(tinyrun.config(pair, tmp_path)).models.tower
    values = tower.values_per_patch + 4 * tower.width + 2 * tower.mlp_width
    assert batch(task, patches=99) == pytest.approx(10**6 / (IMAGE_TOKENS + 2) * 99 * 4 * values)


def test_an_engine_in_bf16_takes_half(pair: Path, tmp_path: Path, on_h100: Any):
    """Weights, keys and values, and activations; the logits that are scored are float32 in both."""
    tasks = {"tasks": ["arc_easy"]}
    whole = on_h100(tinyrun.config(pair, tmp_path, evaluation=tasks)).engine
    half = on_h100(tinyrun.config(pair, tmp_path, evaluation=tasks | {"precision": "bf16"})).engine
    assert whole is not None and half is not None
    assert half.items[0].bytes == whole.items[0].bytes / 2 and half.items[0].what == "weights, bf16"
    assert whole.items[1].bytes / 2 < half.items[1].bytes < 0.6 * whole.items[1].bytes


def test_command(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command prints a table, says that a tiny pair fits, and by which setting a large step would."""
    path = tinyrun.write_settings(tmp_path / "my.yaml", pair, tmp_path)
    main([str(path), "device=h100", "text_tokens=60", "answer_tokens=20"])
    text = capsys.readouterr().out
    assert f"{IMAGE_TOKENS} image + 60 text + 20 answer tokens" in text and "\nfits " in text and "cuda_ipc" in text
    large = ["train.tokens_per_micro_batch=1200000", "train.rows_per_step=15000", "text_tokens=76", "answer_tokens=80"]
    main([str(path), "device=l4", "train.precision=bf16", *large])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("too large") for line in lines)
    step = " ".join(" ".join(lines[-6:]).split())  # however it is cut
    shares = [int(number) for number in re.findall(r"(?<= )(\d+)%", step)]
    assert re.search(r"step [\d.e-]+ s: student \d+%", step) and 95 <= sum(shares) <= 105
    changed = {line.split()[0]: line for line in lines if line.startswith(" " * 12 + "t") and "=" in line}
    assert changed["train.tokens_per_micro_batch=300000"].endswith("fits")
    assert {"train.gradient_checkpointing=True", "teacher.look_ahead=0"} <= changed.keys()


@pytest.mark.parametrize(
    ("name", "gib", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 79, "h100"),
        ("NVIDIA H100 NVL", 93, "h100"),
        ("NVIDIA A100-SXM4-40GB", 39, "a100"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA L4", 22, "l4"),
        ("NVIDIA L40S", 44, None),
        ("NVIDIA GH200 480GB", 94, None),
    ],
)
def test_the_gpu_of_this_machine(name: str, gib: float, known: str | None, monkeypatch: pytest.MonkeyPatch):
    """Its own memory with the rates of the table; no other GPU is taken for it."""
    there = SimpleNamespace(name=name, total_memory=int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: there)
    if known is None:
        with pytest.raises(UserError, match=f"no figures for {name}; name the nearest of h100"):
            gpu_here()
        return
    assert gpu_here() == replace(GPUS[known], memory=there.total_memory)


def test_a_run_that_leaves_gpus_alone_is_one_of_cpus(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where no device is named the settings tell, as they do when it runs."""
    monkeypatch.setattr("lingu_ray.cost.estimate.gpu_here", lambda: GPUS["l4"])
    assert estimate(tinyrun.config(pair, tmp_path), ROW).device.name == "l4"
    assert estimate(tinyrun.config(pair, tmp_path, ray={"use_gpu": False}), ROW).device.name == "cpu"


def test_what_is_wrong_is_said(pair: Path, tmp_path: Path):
    """Rows above the longest sample, and hub models without a network, are refused with what to do."""
    with pytest.raises(UserError, match=r"corpus\.max_length=160: raise that, or give image_tokens"):
        estimate(tinyrun.config(pair, tmp_path), RowConfig(text_tokens=200), "h100")
    with pytest.raises(UserError, match=r"config\.json alone.*student\.path=FOLDER"):
        main(["smolvlm-256m", "device=h100"])
    with pytest.raises(UserError, match="device: v100 does not fit"):
        main(["smolvlm-256m", "device=v100"])
