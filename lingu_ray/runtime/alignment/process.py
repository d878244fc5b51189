"""The alignment's own process: pictures and their targets, features kept, epochs, what held-out pictures choose.

corpus ─► pictures, targets ─► micro-batches, through the frozen blocks once ─► epochs ─► changed weights
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lingu_ray.config import AlignConfig, Config, TrainConfig
from lingu_ray.corpus.batch import collate, cut
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.encoding_pool import encoded_ahead, encoding_pool
from lingu_ray.corpus.pictures import Picture, Pictures, Targets, choose_targets, read_pictures
from lingu_ray.corpus.processor import run_processor
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.corpus.store import Corpus
from lingu_ray.distill.align import Choices, Chosen, Labels, choose
from lingu_ray.distill.image_path import LowerBlocks, image_tokens, stand_in, tower_blocks
from lingu_ray.distill.student import Student
from lingu_ray.distill.transfer import send
from lingu_ray.errors import UserError
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.alignment.steps import Judged, Part, Step, make_steps
from lingu_ray.runtime.cluster.connect import encoding_threads
from lingu_ray.runtime.cluster.linux import host_memory
from lingu_ray.runtime.models.load import initial_student, load_student
from lingu_ray.runtime.training.distributed import clip_gradients, zero_gradients
from lingu_ray.runtime.training.optimizer import set_learning_rates, trained_parameters
from lingu_ray.runtime.training.step import model_inputs
from lingu_ray.storage import local_copy

KEPT_SHARE = 0.25
"""Share of the memory that processes of the node may use (`host_memory`), which kept features may take."""
_STEPS_AHEAD = 2
_MESSAGES = [{"role": "user", "content": PLACEHOLDER}]


@dataclass(frozen=True)
class AlignJob:
    """What the driver hands to the process. `initial_model`: folder or location; `device`: `cuda` or `cpu`."""

    config: Config
    settings: AlignConfig
    initial_model: Path | str
    corpus_dir: Path | str
    device: str
    threads: int


def aligned_student(job: AlignJob) -> Iterator[dict[str, Any]]:
    """Yield progress, `{stage, done, total, figures}`, and at the end `{weights, record}`.

    `weights`: the changed tensors as a safetensors file; `record`: how it went.

    Raises:
        UserError: the corpus has no pictures with answers to choose.
    """
    torch.set_num_threads(job.threads)
    began = time.monotonic()
    corpus = Corpus(job.corpus_dir)
    pictures = read_pictures(corpus, job.settings.max_rows)
    targets = choose_targets(pictures)
    _require_targets(pictures, targets, job)
    alignment = Alignment(job, corpus, targets)
    trained = make_steps(pictures.trained, targets.trained, job.settings.pictures_per_step)
    held_out = make_steps(pictures.held_out, targets.held_out, job.settings.pictures_per_step)
    yield from alignment.keep_features([*held_out, *trained])
    before = alignment.measure(held_out)
    yield from alignment.train(trained)
    after = alignment.measure(held_out)
    record = {
        "rows": pictures.used,
        "pictures": sum(len(step.pictures) for step in trained),
        "answers": sum(len(of) for step in trained for of in step.targets),
        "left_out": targets.left_out,
        "held_out": {source: one.as_json(after[source]) for source, one in before.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    yield {"weights": save(alignment.changed_weights()), "record": record}


def _require_targets(pictures: Pictures, targets: Targets, job: AlignJob) -> None:
    if any(targets.trained):
        return
    left_out = "".join(f"; {count} answers are {reason}" for reason, count in targets.left_out.items())
    raise UserError(
        f"align: no picture of corpus {job.corpus_dir} has an answer to choose among others: of the {pictures.rows} "
        f"rows read (align.max_rows), {pictures.used} show one picture that no held-out row shows{left_out}. Give a "
        "source with one question about many pictures (captions, names, colors), or leave align out"
    )


class Alignment:
    """A student that is being aligned."""

    def __init__(self, job: AlignJob, corpus: Corpus, targets: Targets):
        self.config, self.settings, self.corpus = job.config, job.settings, corpus
        self.device = torch.device(job.device)
        folder = local_copy(job.initial_model)
        processor = run_processor(folder, self.config.student.trust_remote_code)
        self.encoder = Encoder(processor, self.config.corpus.max_length)
        torch.manual_seed(self.config.seed)
        self.student = Student(load_student(initial_student(self.config, folder)))
        self.student.model.eval()  # without dropout, so that kept features are those of every epoch
        nn.Module.to(self.student.model, self.device)
        self.optimizer = alignment_optimizer(self.student, self.settings)
        self.lower = LowerBlocks(self.student, self.settings.blocks)
        self.room = KEPT_SHARE * host_memory()
        ids = [self.encoder.tokenizer(f" {label}", add_special_tokens=False).input_ids for label in targets.labels]
        self.labels = Labels(self.student.decoder.get_input_embeddings(), ids)

    def keep_features(self, steps: list[Step]) -> Iterator[dict[str, Any]]:
        """Compute what the last blocks get of every picture, and keep it as far as memory allows; yields progress.

        It ends at the first step whose tokens would not be the same to the bit: a family may read lower blocks, too.
        """
        for done, (step, parts) in enumerate(self._prepared(steps), start=1):
            with torch.no_grad():
                kept = [light for part in parts if (light := self._kept(part)) is not None]
            self.room -= sum(tensor.nbytes for part in kept for tensor in part.kept or [])
            if len(kept) < len(parts) or self.room < 0:
                return
            step.parts = kept
            yield {"stage": "keeping features", "done": done, "total": len(steps), "figures": ""}

    def _kept(self, part: Part) -> Part | None:
        """The micro-batch with what the last blocks get of it, and without pixels; None where that is not enough."""
        with self.lower.recorded() as kept:
            token_KD = self._tokens(part)
        inputs = replace(part.inputs, vision=stand_in(part.inputs.vision))
        light = Part(inputs, part.places, [tensor.cpu() for tensor in kept])
        return light if torch.equal(self._tokens(light), token_KD) else None

    def train(self, steps: list[Step]) -> Iterator[dict[str, Any]]:
        """All epochs, each in an order of its own; yields progress."""
        order = random.Random(self.config.seed)
        planned = [step for _ in range(self.settings.epochs) for step in order.sample(steps, len(steps))]
        schedule = TrainConfig(steps=len(planned), warmup=0.05, min_lr=0.0)
        for done, (step, parts) in enumerate(self._prepared(planned)):
            set_learning_rates(self.optimizer, done, schedule)
            loss = self._train_step(step, parts, schedule.grad_clip)
            yield {"stage": "training", "done": done + 1, "total": len(planned), "figures": f"loss {loss:.3f}"}

    def _train_step(self, step: Step, parts: list[Part], grad_clip: float) -> float:
        parameters = trained_parameters(self.optimizer)
        zero_gradients(parameters)
        answers, total = sum(len(of) for of in step.targets), 0.0
        for part in parts:
            choices, _ = step.choices(part, self.labels)
            chosen = self._choose(part, choices)
            loss = (chosen.choice + chosen.nearness) / answers + chosen.size / len(step.pictures)
            loss.backward()
            total += float(loss.detach())
        clip_gradients([p for p in parameters if p.grad is not None], grad_clip)
        self.optimizer.step()
        return total

    @torch.no_grad()
    def measure(self, steps: list[Step]) -> dict[str, Judged]:
        """What the pictures choose now, by source."""
        judged: dict[str, Judged] = {}
        for step, parts in self._prepared(steps):
            for part in parts:
                choices, columns = step.choices(part, self.labels)
                column_J = self._choose(part, choices).label_J.tolist()
                for (place, target), column in zip(step.asked(part), column_J, strict=True):
                    row = step.pictures[place].row
                    of_source = judged.setdefault(row.source if isinstance(row, Row) else "", Judged())
                    of_source.add(target, step.candidates(place, target), columns[column])
        return judged

    def changed_weights(self) -> dict[str, Tensor]:
        """The tensors that were trained, by name."""
        trained = {id(parameter) for parameter in trained_parameters(self.optimizer)}
        named = self.student.model.named_parameters()
        return {name: p.detach().cpu().contiguous() for name, p in named if id(p) in trained}

    def _choose(self, part: Part, choices: Choices) -> Chosen:
        picture_K = part.inputs.sample_BT[part.inputs.visual_BT]
        there = send({**vars(choices), "picture_K": picture_K}, self.device)
        return choose(self._tokens(part), there.pop("picture_K"), Choices(**there), self.labels)

    def _tokens(self, part: Part) -> Tensor:
        """`[K, D]`: the image tokens of a micro-batch."""
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")
        kept = None if part.kept is None else [tensor.to(self.device) for tensor in part.kept]
        with bf16, nullcontext() if kept is None else self.lower.left_out(kept):
            return image_tokens(self.student, part.inputs.to(self.device))

    def _prepared(self, steps: list[Step]) -> Iterator[tuple[Step, list[Part]]]:
        """Each step with its micro-batches: those that are kept, else encoded in threads, ahead of need."""
        pictures = ([] if step.parts else enumerate(step.pictures) for step in steps)
        with encoding_pool(encoding_threads(self.config.ray, self.device.type == "cuda")) as pool:
            samples = encoded_ahead(pool, pictures, self._encode, _STEPS_AHEAD)
            yield from zip(steps, map(self._parts, steps, samples), strict=True)

    def _encode(self, placed: tuple[int, Picture]) -> Sample:
        place, picture = placed
        row = picture.row if isinstance(picture.row, Row) else self.corpus.row(picture.row)
        sample = self.encoder.encode_conversation(_MESSAGES, row.images)
        return replace(sample, position=place)

    def _parts(self, step: Step, samples: list[Sample]) -> list[Part]:
        if not samples:
            return step.parts
        budget = max(self.config.train.tokens_per_micro_batch, max(map(len, samples)))
        groups = cut(samples, budget, tokens_of_a_pass(self.device))
        batches = (collate(group, self.encoder.pad_id) for group in groups)
        return [Part(model_inputs(batch), batch.positions) for batch in batches]


def alignment_optimizer(student: Student, settings: AlignConfig) -> torch.optim.AdamW:
    """AdamW over the projector and the tower's last blocks, with one learning rate each; all else is frozen."""
    blocks = tower_blocks(student)
    last = {id(p) for block in [*blocks][max(0, len(blocks) - settings.blocks) :] for p in block.parameters()}
    groups = student.parameter_groups()
    vision = [p for _, p in groups["vision"] if id(p) in last]
    trained = {"vision": vision, "projector": [p for _, p in groups["projector"]]}
    student.model.requires_grad_(False)
    optimized = []
    for name, parameters in trained.items():
        rate = getattr(settings.learning_rates, name)
        if rate and parameters:
            optimized.append({"params": [p.requires_grad_() for p in parameters], "lr": rate, "peak": rate})
    return torch.optim.AdamW(optimized, betas=TrainConfig().betas, weight_decay=0.0, fused=True)
