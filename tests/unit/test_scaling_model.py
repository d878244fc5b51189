"""The model of cost: its formulas against numbers that are known from elsewhere, and the tables of docs/scaling.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.readings import ReadingsConfig, made_up, times_read
from benchmarks.scaling import ScalingConfig, readings, row_of
from lingu_ray.corpus.store import ROW_GROUP
from lingu_ray.cost import formulas
from lingu_ray.cost.formulas import Pair, Sample

DOCS = (Path(__file__).parents[2] / "docs/scaling.md").read_text("utf-8")
SMOLLM2 = Pair(decoder=106.2e6, tower=0, layers=0, width=576, vocabulary=49152)
"""SmolLM2-135M without attention's own operations, which docs/performance.md leaves out."""


def test_operations_are_those_of_the_performance_page():
    """A row of 288 + 32 tokens: 209 GFLOP of fine-tuning, 8.6 of the teacher and its head."""
    sample = Sample(tower_tokens=0, prompt=288, answer=32, distilled=1)
    assert formulas.student_flops(SMOLLM2, sample) == pytest.approx(209e9, rel=0.005)
    assert formulas.teacher_flops(SMOLLM2, sample) == pytest.approx(8.6e9, rel=0.01)


def test_bytes():
    """KV of a token of SmolLM2-135M in float32 (46 kB); a ring sends each gradient twice but for a share; one worker
    sends nothing; a checkpoint without frozen weights is three copies."""
    assert formulas.kv_bytes(layers=30, kv_heads=3, head_dim=64, tokens=1, number=4) == 46080
    assert [formulas.all_reduce_bytes(100, workers) for workers in (1, 2, 4)] == [0, 400, 600]
    assert formulas.fsdp2_bytes(100, 0, 2, micro_batches=3, number=2) == 3 * 0.5 * 100 * 8
    assert formulas.checkpoint_bytes(100) == 1200


@pytest.mark.parametrize("gpus", [1, 8, 64, 256, 1000])
def test_the_table_of_the_page_is_the_model(gpus: int):
    """Rows a second, days, price and bytes for each size, as `python -m benchmarks.scaling` prints them."""
    (line,) = re.findall(rf"^\| {gpus} \| (.*) \|$", DOCS, re.MULTILINE)
    written = [float(cell.replace(" ", "")) for cell in line.split("|")]
    row = row_of(ScalingConfig(), gpus)
    names = ("rows a second", "days", "price", "step, s", "gradients, s", "KV, GB/s a node", "shared disk, GB/s")
    assert written == pytest.approx([row[name] for name in (*names, "copied from bucket, TB")], rel=0.03, abs=1e-4)


@pytest.mark.parametrize("readers", [1, 3, 16])
def test_readings_are_below_the_model(tmp_path: Path, readers: int):
    """Bytes counted on files: one reader reads them once, several at most as often as the model says, but for ends."""
    corpus = made_up(tmp_path, ReadingsConfig(rows=1024, row_bytes=3000, rows_per_shard=1024))
    counted, model = times_read(corpus, readers, 256), readings(readers, 256, ROW_GROUP)
    assert 1 <= counted <= model + 0.025 * readers and (readers < 16 or counted > 2)
