"""What is chosen for GPUs beside what is not, and what an operation costs the host.

    python -m benchmarks.choices pair=SmolVLM-256M out=FOLDER

Whole steps of plain fine-tuning in bf16, a pair with random weights, timed in turn; `ratio`: over what is chosen.

    cuDNN last, first      orders of attention kernels, on rows whose lengths are new in every step: as training has it,
                           and as PyTorch has it on Hopper and Blackwell
    frozen bf16, float32   LoRA with the frozen weights as training holds them, and in float32

Then microseconds (`us`) of an operation, which `lingu-ray estimate` takes to be `LAUNCH_SECONDS`:

    launch, in a decoder   forward and backward pass over a row of one token, by the operations that the estimate counts
    launch, alone          an addition to one number

What fails, or does not fit into the GPU's memory, has a row that says so; if something fails the exit code is 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from pydantic import Field, PositiveInt
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.one_step import add_gradients, run_config
from benchmarks.pairs import Pair, PairName, named_pair
from benchmarks.report import (
    BenchmarkConfig,
    Row,
    Timing,
    measure,
    publish,
    ratio,
    require_all,
    run_or_reason,
    seconds_of,
)
from benchmarks.step import as_read
from lingu_ray.config import TrainConfig
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.cost.trace import decoder_pass
from lingu_ray.distill.student import Student
from lingu_ray.errors import run_command
from lingu_ray.runtime.training.optimizer import make_optimizer
from lingu_ray.runtime.training.prepare import prepare
from lingu_ray.runtime.training.step import MicroBatches

LAST = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION)
FIRST = (SDPBackend.CUDNN_ATTENTION, *LAST[:-1])
OPERATIONS = 1000


class ChoicesConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(5, description="rounds of timing")
    pair: PairName = Field("SmolVLM-256M", description="shapes of the models")
    rows: PositiveInt = Field(16, description="rows of a micro-batch")
    micro_batches: PositiveInt = Field(3, description="micro-batches of a step")
    image_tokens: PositiveInt = Field(256, description="image tokens of a row")
    text_tokens: PositiveInt = Field(256, description="question tokens at most, where rows are ragged; else a half")
    answer_tokens: PositiveInt = Field(32, description="answer tokens")


HELP = Help("python -m benchmarks.choices [key=value ...]", __doc__, ChoicesConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    settings = options.recorded
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for name, compare in {"attention": _attention, "frozen": _frozen, "launch": _launches}.items():
        found, why = run_or_reason(lambda compare=compare: list(compare(settings, device)))
        if why is not None:
            missing[name] = why
        rows += found or [{"way": name, "ratio": None, "median_s": None, "quartiles": why, "us": None}]
    publish("choices", rows, options.out, settings)
    require_all(missing)


class Training:
    """Plain fine-tuning in bf16 of the pair's student; `exact`: its weights are some that bf16 has."""

    def __init__(self, pair: Pair, device: torch.device, lora: bool = False, exact: bool = True):
        torch.manual_seed(0)
        with device:  # random numbers for billions of weights take a CPU long
            model = pair.make_student()
        self.student = Student(model.bfloat16().float() if exact else model)
        train = TrainConfig.model_validate({"precision": "bf16", "lora": {"rank": 16} if lora else None})
        prepare(self.student, train, device, seed=0)
        self.optimizer = make_optimizer(self.student, train)
        self.passes = MicroBatches(run_config("unused", "in_process", 0, "bf16"), self.student, None, device)

    def step(self, batches: list[MicroBatch]) -> None:
        """One optimizer step."""
        add_gradients(self.passes, batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _attention(settings: Row, device: torch.device) -> Iterator[Row]:
    pair = named_pair(settings["pair"])
    training = Training(pair, device)

    def in_order(order: tuple[SDPBackend, ...]) -> Callable[[], None]:
        steps = ragged_steps(pair, settings, device)  # both ways see the same lengths

        def step() -> None:
            with sdpa_kernel(list(order), set_priority=True):
                training.step(next(steps))

        return step

    yield from _beside(measure({"cuDNN last": in_order(LAST), "cuDNN first": in_order(FIRST)}, settings["repeats"]))


def ragged_steps(pair: Pair, settings: Row, device: torch.device) -> Iterator[list[MicroBatch]]:
    """Micro-batches of steps whose rows have other lengths each time."""
    drawn, generator = random.Random(0), torch.Generator().manual_seed(0)
    while True:
        step = []
        for _ in range(settings["micro_batches"]):
            lengths = [drawn.randint(1, settings["text_tokens"]) for _ in range(settings["rows"])]
            samples = [pair.sample(settings | {"text_tokens": n}, i, generator) for i, n in enumerate(lengths)]
            step.append(as_read(collate(samples, pad_id=0), {"precision": "bf16"}, device))
        yield step


def _frozen(settings: Row, device: torch.device) -> Iterator[Row]:
    pair, sizes = named_pair(settings["pair"]), settings | {"text_tokens": -(-settings["text_tokens"] // 2)}
    drawn = [pair.micro_batch(sizes, seed) for seed in range(settings["micro_batches"])]
    batches = [as_read(batch, {"precision": "bf16"}, device) for batch in drawn]
    ways = {"frozen bf16": True, "frozen float32": False}
    steps = {
        name: partial(Training(pair, device, lora=True, exact=exact).step, batches) for name, exact in ways.items()
    }
    yield from _beside(measure(steps, settings["repeats"]))


def _beside(timings: dict[str, Timing]) -> Iterator[Row]:
    """Rows of ways, the first of which is what is chosen."""
    chosen = next(iter(timings.values()))
    for name, timing in timings.items():
        row = {"way": name, "ratio": ratio(timing, chosen), "median_s": timing.median, "quartiles": timing.quartiles}
        yield row | {"us": None}


def _launches(settings: Row, device: torch.device) -> Iterator[Row]:
    pair = named_pair(settings["pair"])
    decoder = Training(pair, device).student.decoder
    with torch.device("meta"):
        counted = Student(pair.make_student()).decoder
    operations = decoder_pass(counted, 1, 1, masked=False, bf16=True, checkpointing=False).launches
    embedding_RTD = torch.zeros(1, 1, decoder.config.hidden_size, device=device, requires_grad=True)
    position_ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    number = torch.zeros(1, device=device)

    def one_pass() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            hidden = decoder(inputs_embeds=embedding_RTD, position_ids=position_ids, use_cache=False).last_hidden_state
        hidden.sum().backward()

    def alone() -> None:
        for _ in range(OPERATIONS):
            number.add_(1)

    ways = {"launch, in a decoder": (one_pass, operations), "launch, alone": (alone, OPERATIONS)}
    for name, (work, count) in ways.items():
        work(), work()  # the second has gradients to add to
        found = Timing(tuple(1e6 * seconds_of(work) / count for _ in range(settings["repeats"])))
        row = {"way": name, "ratio": None, "median_s": found.median * count / 1e6}
        yield row | {"quartiles": found.quartiles, "us": found.median}


if __name__ == "__main__":
    run_command(main)
