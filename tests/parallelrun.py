"""A few optimizer steps on the tiny pair, without Ray: in this process, or as one of several workers over gloo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing
from saved import save_checkpoint
from tiny import tiny_processor
from tinyrun import config

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.encoding_pool import encoding_pool
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState
from lingu_ray.runtime.checkpoints.contents import load_checkpoint
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import load_student, load_teacher
from lingu_ray.runtime.training.distributed import all_sum, clip_gradients, sum_gradients
from lingu_ray.runtime.training.optimizer import make_optimizer, trained_parameters
from lingu_ray.runtime.training.prepare import between_steps, prepare
from lingu_ray.runtime.training.sharding import gather_full, named_tensors
from lingu_ray.runtime.training.step import MicroBatches
from lingu_ray.runtime.training.validation import Validation, answer_samples

CPU = torch.device("cpu")
FORKED = "forkserver"


@dataclass
class Outcome:
    """What the steps gave, each over all workers, and gradients and weights after the last, on the first worker."""

    batches: list[float]
    loss: list[float]
    kd: list[float]
    norm: list[float]
    validation_ce: float
    answers: list[str]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


def rows(data: Path) -> list[Row]:
    """Two texts, which fit one micro-batch, and three picture questions, which take more."""
    say = lambda role, content: {"role": role, "content": content}  # noqa: E731
    image = lambda i: [(data / f"{i}.png").read_bytes()]  # noqa: E731
    long = "Look closely at every single dot of this picture and say what you see in all of it, please, now: even?"
    return [
        Row("text", 0, [say("user", "Tell me."), say("assistant", "A longer story.")], [], True),
        Row("text", 1, [say("user", "And you, what do you say?"), say("assistant", "No.")], [], True),
        Row("pictures", 2, [say("user", "<image>Even?"), say("assistant", "It is odd.")], image(0), False),
        Row("text", 3, [say("user", f"<image>{long}"), say("assistant", "It is even, quite sure.")], image(1), True),
        Row("pictures", 4, [say("user", "<image>Odd?"), say("assistant", "It is even.")], image(2), False),
    ]


class Steps:
    """A worker's part in a run with the settings `train`: of two workers one has the texts, the other the pictures."""

    def __init__(self, data: Path, **train: Any):
        train = {"tokens_per_micro_batch": 160, **train}
        self.config = config(data, data, train=train, teacher={"look_ahead": 1}, distill={"policy": "all"})
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.student = Student(load_student(self.config.student, as_stored=True))
        prepare(self.student, self.config.train, CPU, seed=0)
        self.optimizer = make_optimizer(self.student, self.config.train)
        dtype = torch.bfloat16 if self.config.train.precision == "bf16" else torch.float32
        teacher = load_teacher(self.config.teacher, dtype, CPU)
        self.micro_batches = MicroBatches(self.config, self.student, teacher, CPU)
        self.encoder = Encoder(tiny_processor(), 160)
        self.rows = rows(data)

    def run(self, count: int) -> Outcome:
        """Validate and answer, as workers may differ in how much they have to, then take `count` steps."""
        steps, parameters = [], trained_parameters(self.optimizer)
        held_out = {"text": self.rows[:3], "pictures": self.rows[4:]}
        validation = Validation(self.config, held_out, self.encoder, CPU, self.rank, self.world)
        with between_steps(self.student, self.micro_batches.autocast()):
            answers = answer_samples(self.student, self.encoder, self.rows[2:3] if self.rank == 0 else [])
        with between_steps(self.student, self.micro_batches.autocast()), encoding_pool(2) as pool:
            record = validation.run(self.micro_batches, pool)
        mine = self.rows if self.world == 1 else self.rows[:2] if self.rank == 0 else self.rows[2:]
        samples = [self.encoder.encode(row) for row in mine]
        gradients: dict[str, torch.Tensor] = {}
        for step in range(count):
            batches = self.micro_batches.make(samples, self.encoder.pad_id)
            plans = [self.micro_batches.plan(batch) for batch in batches]
            self.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(step)
            sums = self.micro_batches.run(batches, plans, self.micro_batches.weights(0.0, batches, plans))
            sum_gradients(parameters)
            norm = clip_gradients(parameters, 1.0)
            named = self.student.model.named_parameters()
            gradients = gather_full({name: p.grad for name, p in named if p.grad is not None}, self.rank == 0)
            self.optimizer.step()
            steps.append([*all_sum([len(batches), sums.loss, sums.kd], CPU), norm])
        weights = gather_full(self.student.model.state_dict(keep_vars=True), self.rank == 0)
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        columns = [list(column) for column in zip(*steps, strict=True)]
        return Outcome(*columns, record["validation_ce"], [a["answer"] for a in answers], gradients, weights)

    def save(self, folder: Path, step: int, layout: Literal["whole", "sharded"] = "whole") -> None:
        """Write a checkpoint."""
        save_checkpoint(folder, self.student.model, self.optimizer, CheckpointState(step, None), 1, layout)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        assert load_checkpoint(folder, self.student.model, self.optimizer) is not None

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
        """Weights and what the optimizer keeps, unsharded, by name; on the first worker."""
        main, optimizer = self.rank == 0, self.optimizer
        named = named_tensors(self.student.model)
        moments = {n: gather_full(optimizer.state[p], main) for n, p in named.items() if p in optimizer.state}
        return gather_full(named, main), moments

    def export(self, folder: Path) -> None:
        """Write the finished model."""
        export_model(self.student.model, tiny_processor(), torch.float32, folder, self.config.train.lora)


def in_workers(work: Callable[[Path, Path], None], data: Path, folder: Path, world: int = 2) -> None:
    """Run `work(data, folder)` in `world` processes that form a gloo group; what it raises, this raises.

    They are forks of a process that has imported the libraries, as every test of this process asks for some.
    """
    torch.multiprocessing.get_context(FORKED).set_forkserver_preload(
        ["torch._dynamo", "lingu_ray.runtime.training.step"]
    )
    torch.multiprocessing.start_processes(_worker, (work, data, folder, world), world, start_method=FORKED)


def _worker(rank: int, work: Callable[[Path, Path], None], data: Path, folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    work(data, folder)
    dist.barrier()
    dist.destroy_process_group()
