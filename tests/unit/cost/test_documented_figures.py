"""What the GPU page and recipes say that `lingu-ray estimate` says, it says; models are of the shapes of known ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pairs import PairName, named_pair
from lingu_ray.cost.devices import GIB
from lingu_ray.cost.estimate import Estimate, estimate
from lingu_ray.cost.workload import RowConfig
from lingu_ray.estimate import read_arguments

pytestmark = [pytest.mark.long, pytest.mark.slow]  # traces models in their true sizes

ROOT = Path(__file__).parents[3]
MEMORY = (ROOT / "docs/gpu.md").read_text(encoding="utf-8").partition("\n## Memory\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (\w+-[\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)", MEMORY, re.MULTILINE)
RECIPES: dict[str, PairName] = {"smolvlm-256m": "SmolVLM-256M", "paper": "nanoVLM-460M", "qwen2-vl-2b": "Qwen2-VL-2B"}


@pytest.fixture
def said(tmp_path: Path) -> Any:
    """The estimate of a command, whose models are a pair's."""

    def estimate_of(command: str, pair: PairName, *more: str) -> Estimate:
        configurations = named_pair(pair)
        for name, model in (("vlm", configurations.student), ("lm", configurations.teacher)):
            model.dtype = "bfloat16"  # as these are published
            model.save_pretrained(tmp_path / name)
        models = [f"student.path={tmp_path / 'vlm'}", f"teacher.path={tmp_path / 'lm'}"]
        config, settings = read_arguments([*shlex.split(command)[2:], *more, *models])
        return estimate(config, RowConfig(**settings.model_dump(exclude={"device"})), settings.device)

    return estimate_of


@pytest.mark.parametrize(("model", "state", "kept", "worker", "teacher", "together"), ROWS)
def test_memory_by_model(said, model, state, kept, worker, teacher, together) -> None:
    """Each row of the page's table, to its last digit."""
    command = re.search(r"^lingu-ray estimate .*", MEMORY, re.MULTILINE)
    assert command and len(ROWS) == 4
    found = said(command[0], model, *["image_tokens=256"] * ("Qwen" in model))
    of_worker, of_teacher, _ = found.training
    items = {item.what.partition(",")[0]: item.bytes for item in of_worker.items}
    states = items["weights"] + items["frozen weights"] + items["gradients"] + items["optimizer: two moments"]
    shown = states, items["kept for the backward pass"], of_worker.bytes, of_teacher.bytes, found.needed
    assert [f"{number / GIB:.1f}" for number in shown] == [state, kept, worker, teacher, together]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(said, recipe: str) -> None:
    """Memory, time of a step and of the run in a recipe's first comment."""
    lines = (ROOT / f"lingu_ray/recipes/{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    told = re.search(
        r"`(lingu-ray estimate [^`]*)` says: (\S+) GiB of a GPU.*?, (\S+) GiB of host .*?, (\S+) s", comment
    )
    assert told
    found = said(told[1], RECIPES[recipe])
    assert abs(found.needed / GIB - float(told[2])) < 0.51
    assert abs(found.training[-1].bytes / GIB - float(told[3])) < 0.51
    assert abs(found.time.total - float(told[4])) < 0.051
