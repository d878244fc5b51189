"""Items per second of the evaluation's engines: vLLM against Transformers, on the same items.

    python -m benchmarks.evaluate [MODEL ...] out=docs/performance

Without a MODEL it makes two with random weights: a language model of SmolLM2-135M's shape, and on it a VLM of
SmolVLM-256M's shape that sees one tile an image. Tasks:

    choice      log-likelihoods of four endings of one context; an item is all four
    perplexity  log-likelihood of a text
    text        greedy answer to raw text
    image       greedy answer about an image, for models that take images

For every batch size both engines are started, each in a Ray actor with all cores, and take turns. Every round has new
items, so that no cache helps. `start_s` is the time until the model is loaded, imports included.
`to_transformers` compares with Transformers at the same batch size, round by round; `to_best` with its best batch size.
Where vLLM is not installed Transformers is measured alone.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import ray
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from tqdm import tqdm
from transformers import LlamaForCausalLM

from benchmarks.pairs import llama
from benchmarks.report import BenchmarkConfig, Row, Timing, measure, plot_bars, publish, ratio, seconds_of
from lingu_ray.config import (
    Config,
    CorpusConfig,
    RayConfig,
    Several,
    SourceConfig,
    StudentConfig,
    TeacherConfig,
    VisionConfig,
)
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.demo.text import Documents, passages, read_documents, running_texts, train_tokenizer
from lingu_ray.errors import run_command
from lingu_ray.evaluation.engines.engine import Engine, GenerateRequest, ScoreRequest
from lingu_ray.evaluation.engines.load import takes_images
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.engines.vllm_engine import VllmEngine
from lingu_ray.paths import model_path
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.models.load import prepare_student

ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "transformers": TransformersEngine,
    "vllm": partial(VllmEngine, gpu_share=0.5),  # alone vLLM would leave Transformers a tenth of the memory
}
TaskName = Literal["choice", "perplexity", "text", "image"]
CONTEXT = 2048
WORDS_OF_TOKENIZER = 4096
IMAGE_SIDE = 512


class TimedEngine:
    """An engine in its actor, with all cores."""

    def __init__(self, engine: str, model: str, tokens_per_batch: int) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        self.engine = ENGINES[engine](model, tokens_per_batch)

    def seconds(self, requests: list[ScoreRequest] | list[GenerateRequest]) -> float:
        """Time of answering requests of one kind."""
        scored = isinstance(requests[0], ScoreRequest)
        return seconds_of(partial(self.engine.loglikelihoods if scored else self.engine.generate, requests))


class EnginesConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(3, description="rounds of timing")
    tasks: Several[TaskName] = Field(get_args(TaskName), description="what is asked")
    tokens_per_batch: Several[PositiveInt] = Field((2048, 8192), description="batch sizes")
    items: PositiveInt = Field(32, description="items of a round")
    images: PositiveInt = Field(8, description="items of a round of `image`")
    words: PositiveInt = Field(60, description="words of a text")
    new_tokens: PositiveInt = Field(32, description="tokens of an answer")
    layers: PositiveInt = Field(30, description="decoder layers of the random models")


HELP = Help("python -m benchmarks.evaluate [MODEL ...] [key=value ...]", __doc__, EnginesConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    names, options = names_and_settings(arguments, HELP)
    connect(RayConfig())
    with tempfile.TemporaryDirectory() as folder:
        models = list(map(model_path, names)) or make_models(Path(folder), options.layers)
        rows = [row for model in models for row in measure_model(model, options)]
    publish("evaluate", rows, options.out, {"models": names} | options.recorded, plot=plot)
    ray.shutdown()


def measure_model(model: str, options: EnginesConfig) -> list[Row]:
    """Rows of a model: every task, batch size and engine."""
    timings: dict[tuple[str, int], dict[str, Timing]] = {}
    starts: dict[tuple[str, int], float] = {}
    for size in tqdm(options.tokens_per_batch, desc=Path(model).name, unit="batch size"):
        actors = {}
        for engine in installed():
            actors[engine], starts[engine, size] = start(engine, model, size)
        for task in options.tasks:
            if task != "image" or takes_images(model):
                ways = {engine: one_round(actor, task, options) for engine, actor in actors.items()}
                timings[task, size] = measure(ways, options.repeats, clock=lambda way: way())
        for actor in actors.values():
            ray.kill(actor)
    best: dict[str, float] = {}
    for (task, _), found in timings.items():
        best[task] = min(best.get(task, math.inf), found["transformers"].median)
    return [
        {
            "model": Path(model).name,
            "task": task,
            "tokens_per_batch": size,
            "engine": engine,
            **speed(timing, items_of(task, options)),
            "to_transformers": ratio(found["transformers"], timing),
            "to_best": best[task] / timing.median,
            "start_s": starts[engine, size],
        }
        for (task, size), found in timings.items()
        for engine, timing in found.items()
    ]


def installed() -> list[str]:
    """The engines that are installed."""
    return [engine for engine in ENGINES if find_spec(engine)]


def start(engine: str, model: str, tokens_per_batch: int) -> tuple[Any, float]:
    """An actor that has loaded the model, and how many seconds that took."""
    begin = time.perf_counter()
    share = 1 / len(ENGINES) if torch.cuda.is_available() else 0
    remote: Any = ray.remote
    actor = remote(num_cpus=0, num_gpus=share)(TimedEngine).remote(engine, model, tokens_per_batch)
    ray.get(actor.__ray_ready__.remote())
    return actor, time.perf_counter() - begin


def speed(timing: Timing, items: int) -> Row:
    """Columns of items a second, for rounds of `items` items."""
    low, high = timing.spread
    return {"items_per_s": items / timing.median, "quartiles": f"{items / high:.3g}–{items / low:.3g}"}


def one_round(actor: Any, task: str, options: EnginesConfig) -> Callable[[], float]:
    """A function that measures a round with new items at every call."""
    rounds = requests_of(task, items_of(task, options), options.words, options.new_tokens)
    return lambda: ray.get(actor.seconds.remote(next(rounds)))


def items_of(task: str, options: EnginesConfig) -> int:
    """How many items a round has."""
    return options.images if task == "image" else options.items


def requests_of(task: str, items: int, words: int, new_tokens: int) -> Iterator[list[Any]]:
    """The requests of each round; no text or image occurs twice."""
    texts = (" ".join(passage) for _, passage in passages(documents(), words))
    for turn in itertools.count():
        drawn = list(itertools.islice(texts, items))
        if task == "choice":
            yield [request for text in drawn for request in choices(text, drawn)]
        elif task == "perplexity":
            yield [ScoreRequest("", text) for text in drawn]
        elif task == "text":
            yield [GenerateRequest(text, max_new_tokens=new_tokens, chat=False) for text in drawn]
        else:
            yield [
                GenerateRequest("What is it?", (picture(turn * items + index),), new_tokens) for index in range(items)
            ]


@cache
def documents() -> Documents:
    """The reference text that Python carries."""
    return read_documents()


def choices(text: str, others: list[str]) -> list[ScoreRequest]:
    """Requests for the rest of a text followed by its last sixth, and by that of three other texts."""
    cut = len(text) * 5 // 6
    endings = [text, *random.Random(text).sample(others, min(3, len(others)))]
    return [ScoreRequest(text[:cut], ending[len(ending) * 5 // 6 :]) for ending in endings]


def picture(seed: int) -> bytes:
    """A JPEG of colored fields."""
    fields = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(fields).resize((IMAGE_SIDE, IMAGE_SIDE)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_models(folder: Path, layers: int) -> list[str]:
    """Save a random language model with a small tokenizer, and a new VLM on it; returns both folders."""
    torch.manual_seed(0)
    lm, vlm = folder / "SmolLM2-135M, random", folder / "SmolVLM-256M, random"
    tokenizer = train_tokenizer(running_texts(documents()), WORDS_OF_TOKENIZER)
    config = llama(576, 1536, layers, heads=9, kv_heads=3)
    config.max_position_embeddings, config.pad_token_id = CONTEXT, tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    LlamaForCausalLM(config).save_pretrained(lm)
    tokenizer.save_pretrained(lm)
    run = Config(
        name="benchmark",
        teacher=TeacherConfig(path=str(lm)),
        student=StudentConfig(from_teacher=VisionConfig()),  # SmolVLM-256M's tower
        corpus=CorpusConfig(sources=(SourceConfig(name="none", format="text", path="none", language_heavy=True),)),
    )
    prepare_student(run, vlm)
    return [str(lm), str(vlm)]


def plot(rows: list[Row], path: Path) -> None:
    """vLLM's speed over Transformers' at the same batch size, by model and task."""
    ours = [found for found in rows if found["engine"] == "vllm"]
    if not ours:
        return
    groups = list(dict.fromkeys(f"{found['task']}\n{textwrap.fill(found['model'], 14)}" for found in ours))
    sizes = list(dict.fromkeys(found["tokens_per_batch"] for found in ours))
    series = {
        f"{size} tokens a batch": [found["to_transformers"] for found in ours if found["tokens_per_batch"] == size]
        for size in sizes
    }
    plot_bars(path, "vLLM against Transformers", "items a second, ratio", groups, series, ("Transformers", 1.0))


if __name__ == "__main__":
    run_command(main)
