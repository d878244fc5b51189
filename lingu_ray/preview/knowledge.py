"""How well student and teacher know the answers of a source before anything is trained, by what each is given.

| given | student | teacher |
|---|---|---|
| `own` | the row | the student's keys and values of the row |
| `other` | the row with the pictures of another one | the student's keys and values of that |
| `text` | – | the text of the prompt alone |

Shape suffixes: S rows of a source, N supervised tokens, M those of them that the teacher is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch, make_micro_batches
from lingu_ray.corpus.chat_template import CannotEncode
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row, is_target
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.loss import LossScales, ce_kd_loss
from lingu_ray.distill.step import DistillStep
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Floats, interval, level, resample, summed
from lingu_ray.evaluation.contamination.words import word_runs
from lingu_ray.evaluation.results import Estimate, Interval
from lingu_ray.live import LiveLine
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.training.step import model_inputs

_RESAMPLES = 2000
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Nats:
    """Each row's answers: summed nats of student and teacher, and how many tokens these are (float64, `[S]`)."""

    student_S: Floats
    teacher_S: Floats
    tokens_S: Floats


@dataclass(frozen=True)
class Known:
    """What was found of a source, in nats a token; lower is better.

    `pictured`: rows that another row's pictures were tried on; of fewer than two what pictures tell is None.
    `kv_tells`: how much better the teacher is by the student's keys and values than by the prompt's text.
    `pictures_tell_student`, `pictures_tell_teacher`: how much better each is with the row's own pictures.
    """

    source: str
    rows: int
    pictured: int
    tokens: int
    student: Estimate
    teacher: Estimate
    teacher_by_text: Estimate
    kv_tells: Estimate
    pictures_tell_student: Estimate | None
    pictures_tell_teacher: Estimate | None


class Probe:
    """Asks student and teacher, in this process, as training would; nothing is trained.

    Args:
        config: the run; its scope, earlier turns and precision count.
        student, teacher: on one device.
        encoder: of the student's processor.
    """

    def __init__(self, config: Config, student: Student, teacher: Teacher, encoder: Encoder, bf16: bool) -> None:
        self.config, self.student, self.encoder, self.bf16 = config, student, encoder, bf16
        divergence, settings = divergence_of("forward_kl"), config.teacher  # a step has one; it is not read here
        self.by_kv = DistillStep(student, teacher, divergence, "shared_kv", settings.scope, settings.earlier_turns)
        self.by_text = DistillStep(student, teacher, divergence, "prompt_text")

    def ask(self, source: str, rows: Sequence[Row]) -> Known:
        """What both know of the rows' answers.

        Raises:
            UserError: a row cannot be encoded, or the teacher has none of the answers' tokens.
        """
        own, text, other = (Nats(*np.zeros((3, len(rows)))) for _ in range(3))
        placed = [replace(row, position=place) for place, row in enumerate(rows)]
        pictures = other_pictures(rows)
        with LiveLine(f"asking about {source}", len(rows), "row", keep=False) as line:
            for begin in range(0, len(rows), _ROWS_AT_ONCE):  # pixels of all rows may be more than memory has
                part = slice(begin, begin + _ROWS_AT_ONCE)
                samples = [self._encode(row) for row in placed[part]]
                self._add(samples, self.by_kv, own)
                self._add(samples, self.by_text, text)
                self._add(self._others(placed[part], samples, pictures[part]), self.by_kv, other)
                line.show(min(part.stop, len(rows)))
        if not own.tokens_S.any():
            raise UserError(f"source {source}: the teacher's vocabulary has none of the answers' tokens")
        return _known(source, rows, own, text, other)

    def _encode(self, row: Row) -> Sample:
        try:
            return self.encoder.encode(row)
        except CannotEncode as error:
            raise UserError(f"source {row.source}: a row cannot be encoded: {error}") from error

    def _others(
        self, rows: Sequence[Row], samples: Sequence[Sample], pictures: Sequence[list[bytes] | None]
    ) -> list[Sample]:
        """The rows with these pictures, where the answers' tokens stay."""
        found: list[Sample] = []
        for row, own, images in zip(rows, samples, pictures, strict=True):
            if images is None:
                continue
            try:
                sample = self.encoder.encode(replace(row, images=images))
            except CannotEncode:  # too long by larger pictures
                continue
            if torch.equal(sample.input_ids_T[sample.supervised_T], own.input_ids_T[own.supervised_T]):
                found.append(sample)
        return found

    def _add(self, samples: list[Sample], step: DistillStep, sums: Nats) -> None:
        """Add the samples' nats to those of their rows."""
        device = self.student.model.device
        budget = self.config.train.tokens_per_micro_batch
        for batch in make_micro_batches(samples, budget, self.encoder.pad_id, False, tokens_of_a_pass(device)):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                _add_nats(step, batch, sums)


def other_pictures(rows: Sequence[Row]) -> list[list[bytes] | None]:
    """For each row the pictures of another one that has as many; None where it has none, or no other has."""
    found: list[list[bytes] | None] = []
    for place, row in enumerate(rows):
        alike = [other.images for other in (*rows[place + 1 :], *rows[:place]) if len(other.images) == len(row.images)]
        far = alike[len(alike) // 2 :] + alike[: len(alike) // 2]  # neighbors often show the same thing
        found.append(next((images for images in far if images != row.images), None) if row.images else None)
    return found


def drawn_by(rows: Sequence[Row]) -> list[bytes | str]:
    """What tells the rows apart that intervals are drawn over: those of the same pictures are one.

    So are those with the same answer of more than `WORDS` words, as several pictures of a product have its description.
    """
    answers = ["\n".join(one["content"] for one in row.messages if is_target(one)) for row in rows]
    shared = {text for text, count in Counter(answers).items() if count > 1 and len(word_runs(text)) > 1}
    return [
        text if text in shared else b"".join(row.images) or str(place)
        for place, (row, text) in enumerate(zip(rows, answers, strict=True))
    ]


def _add_nats(step: DistillStep, batch: MicroBatch, sums: Nats) -> None:
    """Add a micro-batch's nats, of the tokens that the teacher has, to those of its rows."""
    inputs = model_inputs(batch)
    plan = step.plan(inputs, torch.ones(len(batch.sources), dtype=torch.bool))
    done, request = step.forward(inputs, plan)
    (teacher,) = step.teacher_outputs(step.ask([request]), [done])
    if teacher is None:
        return
    asked_N = done.kd_mask_N.to(done.labels_N.device)
    labels_M = done.labels_N[asked_N]
    known_M = labels_M < teacher.head.vocabulary
    row_M = np.array(batch.positions)[done.sample_N[done.kd_mask_N][known_M.cpu()].numpy()]
    heads = (
        (sums.student_S, done.hidden_ND[asked_N], step.student.output_head),
        (sums.teacher_S, teacher.hidden_MD, teacher.head),
    )
    for sum_S, hidden_MD, head in heads:
        np.add.at(sum_S, row_M, _answer_nats(step, hidden_MD[known_M], head, labels_M[known_M]))
    np.add.at(sums.tokens_S, row_M, 1)


def _answer_nats(step: DistillStep, hidden_MD: torch.Tensor, head: OutputHead, labels_M: torch.Tensor) -> Floats:
    zeros_M = torch.zeros(len(labels_M), device=labels_M.device)
    with torch.autocast(labels_M.device.type, enabled=False):
        terms = ce_kd_loss(hidden_MD, head, labels_M, LossScales(zeros_M, zeros_M[:0], 1.0), None, step.divergence)
    return terms.ce_N.double().cpu().numpy()


def _known(source: str, rows: Sequence[Row], own: Nats, text: Nats, other: Nats) -> Known:
    """The figures of a source, from what was summed of its rows."""
    images = drawn_by(rows)
    values = np.stack([own.student_S, own.teacher_S, text.teacher_S])
    student, teacher, by_text, kv_tells = _estimates(values, own.tokens_S, images, [(2, 1)])
    there_S, told = other.tokens_S > 0, [None, None]
    kept = [image for image, there in zip(images, there_S, strict=True) if there]
    if len(set(kept)) > 1:
        pairs = np.stack([own.student_S, other.student_S, own.teacher_S, other.teacher_S])[:, there_S]
        told = _estimates(pairs, own.tokens_S[there_S], kept, [(1, 0), (3, 2)])[4:]
    counts = len(rows), int(there_S.sum()), int(own.tokens_S.sum())
    return Known(source, *counts, student, teacher, by_text, kv_tells, *told)


def _estimates(
    values_KS: Floats, tokens_S: Floats, images: Sequence[bytes | str], differences: Sequence[tuple[int, int]]
) -> list[Estimate]:
    """Nats a token of each kind, then the differences of two kinds, with intervals over rows; those of one unit
    (`drawn_by`) are drawn together.
    """
    drawn_KC, weight_KC = (summed(values, images) for values in (values_KS, np.broadcast_to(tokens_S, values_KS.shape)))
    levels_RK = resample(drawn_KC, weight_KC, _RESAMPLES, [0])
    level_K = level(values_KS, tokens_S[None])
    pairs = [(float(level_K[k]), levels_RK[:, k]) for k in range(len(values_KS))]
    pairs += [(float(level_K[a] - level_K[b]), levels_RK[:, a] - levels_RK[:, b]) for a, b in differences]
    return [Estimate(value, Interval(*interval(value_R))) for value, value_R in pairs]
