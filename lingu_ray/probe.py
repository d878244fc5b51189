"""Ask the teacher before training: what it knows of your answers by the student's keys and values, and by text alone.

Takes what training takes, a recipe or a settings file with its settings, and trains nothing: student and teacher are
loaded here, and asked about some rows of each source. Shown are, in nats a token of the answers (lower is better),

  student          by the row itself, and how much its pictures tell: the same with the pictures of another row
  teacher          by the student's keys and values, as KD asks it, and how much the pictures tell it through them
  teacher, text    by the text of the prompt alone (teacher.context=prompt_text)

So you see which sources the teacher is worth asking about (language_heavy), and whether sharing KV tells it more than
the text does. A student that has gone far from its language model donates keys that the teacher reads badly: ask again
with student.path=<run>/export.

examples:
  python -m lingu_ray.probe my.yaml                         64 rows of each source
  python -m lingu_ray.probe my.yaml captions rows=500       more of one
  python -m lingu_ray.probe my.yaml student.path=runs/mine/export out=probe.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import Field

from lingu_ray.atomic import require_writable, write_json
from lingu_ray.config import Config, Section, SourceConfig
from lingu_ray.config.command_line import run_and_own
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.inspect import named_sources, with_demo
from lingu_ray.paths import LocalPath

if TYPE_CHECKING:
    import torch

    from lingu_ray.preview.knowledge import Known


class ProbeConfig(Section):
    """Settings of the command; all others are those of the run."""

    rows: int = Field(64, ge=2, description="rows of each source that are asked about, spread over it")
    device: str | None = Field(None, description="torch device, such as cpu or cuda:1; null: a GPU where there is one")
    out: LocalPath | None = Field(None, description="write what was found as JSON, too; null: off")


_LESS_MEMORY = "lower train.tokens_per_micro_batch, or set device=cpu"
USAGE = "python -m lingu_ray.probe [RECIPE | file.yaml] [SOURCE ...] [key=value ...]"
HELP = Help(USAGE, __doc__, ProbeConfig)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    config, names, settings = run_and_own(arguments, HELP)

    from lingu_ray.preview.knowledge_lines import lines

    config = with_demo(config, USAGE)
    if settings.out is not None:
        require_writable(settings.out, "out")
    found: list[Known] = []
    for known in ask(config, named_sources(config, names), settings):
        print("\n".join(lines(known)), flush=True)
        found.append(known)
        if settings.out is not None:  # what is known already stays, whatever ends the command
            write_json(settings.out, [asdict(known) for known in found])


def ask(config: Config, sources: list[SourceConfig], settings: ProbeConfig) -> Iterator[Known]:
    """What both models know of each source, as soon as it is known.

    Raises:
        UserError: there is no student yet, the pair does not fit, a model cannot be loaded, a source is not found, has
            no rows or cannot be read, or a GPU's memory does not suffice.
    """
    import torch
    from torch import nn
    from transformers.utils import logging

    from lingu_ray.corpus.encode import Encoder
    from lingu_ray.distill.pair import check_tokenizers
    from lingu_ray.distill.student import Student
    from lingu_ray.preview.knowledge import Probe, drawn_by
    from lingu_ray.preview.read import read_rows
    from lingu_ray.runtime.cluster.memory import explained
    from lingu_ray.runtime.models.check import check_pair, check_weights
    from lingu_ray.runtime.models.device import torch_device
    from lingu_ray.runtime.models.load import load_processor, load_student, load_teacher, teacher_tokens
    from lingu_ray.runtime.rehearsal import check_image_token

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # Transformers' own bars
    if config.student.path is None:
        raise UserError("student.path: name a VLM; one that is still to be made (student.from_teacher) knows nothing")
    device = torch_device(settings.device)
    check_pair(config)
    check_weights(config)
    processor = load_processor(config.student)
    tokenizer, vocabulary = teacher_tokens(config.teacher)
    check_tokenizers(processor.tokenizer, tokenizer)
    bf16 = in_bf16(config, device)
    with TemporaryDirectory() as folder, explained("the probe", _LESS_MEMORY):
        processor.save_pretrained(folder)
        rows = {source.name: read_rows(config, source, folder, settings.rows) for source in sources}
        if few := next((name for name, found in rows.items() if len(set(drawn_by(found))) < 2), None):
            raise UserError(
                f"source {few}: one good row, or rows of one picture or answer, tells nothing of how others differ: "
                "raise rows, or name the other sources alone"
            )
        # flash attention computes in bf16 on GPUs alone; elsewhere PyTorch's own gives the same
        attention = config.train.attention if bf16 and device.type == "cuda" else "sdpa"
        model = load_student(config.student, attention).eval()
        check_image_token(model, processor, f"student.path={config.student.path}")
        nn.Module.to(model, device)
        teacher = load_teacher(config.teacher, torch.bfloat16 if bf16 else torch.float32, device, vocabulary)
        probe = Probe(config, Student(model), teacher, Encoder(processor, config.corpus.max_length), bf16)
        for source in sources:
            yield probe.ask(source.name, rows[source.name])


def in_bf16(config: Config, device: torch.device) -> bool:
    """Whether the models are asked in bf16, as they would be trained; `auto` on a CPU is fp32, and nothing is timed."""
    from lingu_ray.runtime.cluster.gpus import computes_in_bf16

    precision = config.train.precision
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and computes_in_bf16(device))


if __name__ == "__main__":
    run_command(main)
