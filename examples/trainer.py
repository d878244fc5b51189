"""Distill a vision-language model with the Trainer of Transformers.

    python examples/trainer.py STUDENT TEACHER DATA OUT

The arguments are those of own_loop.py. In several processes: `torchrun --nproc-per-node 2 examples/trainer.py …`. With
TRL: `class DistillSFTTrainer(DistillMixin, SFTTrainer)`.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from own_loop import collate, read_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Trainer, TrainingArguments

from lingu_ray.distill import Distiller, UserError
from lingu_ray.processors import read_processor

OTHER_LOSS = ("label_smoothing_factor", "torch_compile", "loss_type")
"""Arguments without effect here; the last is TRL's."""


class DistillMixin:
    """Gives a Trainer the loss of a `Distiller`, whose student it trains; batches have a bool `distill` for each row.

    CE and KD are divided by the labels of all batches of an optimizer step, of all processes.
    """

    def __init__(self, distiller: Distiller, *args: Any, **kwargs: Any):
        student = distiller.student
        if getattr(student, "peft_config", None) and not student._hf_peft_config_loaded:
            raise UserError(
                "student: a Trainer would save its layers with get_peft_model's adapters inside, which no class loads: "
                "add them by the student's own add_adapter, whose file the Trainer saves"
            )
        super().__init__(student, *args, **kwargs)
        if self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError("several devices: take one process for each (torchrun), without FSDP and DeepSpeed")
        defaults = {field.name: field.default for field in fields(self.args)}
        if asked := [name for name in OTHER_LOSS if getattr(self.args, name, None) != defaults.get(name)]:
            raise UserError(f"{', '.join(asked)}: of the Trainer's own loss, which the Distiller's takes the place of")
        if self.args.bf16_full_eval or self.args.fp16_full_eval:
            raise UserError("bf16_full_eval, fp16_full_eval: cast the student, and so round its RoPE; take bf16=True")
        self.distiller = distiller
        self.model_accepts_loss_kwargs = True  # counts the labels of all batches of a step
        self.loss_is_scaled_for_ga = True  # and leaves the loss as it is

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """CE + KD; validation, which accumulates nothing, divides by each batch's own labels."""
        batch, distill = split(inputs)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            num_items_in_batch = num_items_in_batch / self.args.world_size  # gradients are averaged
        distiller = self.distiller if model is self.model else model
        with self.accelerator.autocast():
            loss = distiller(batch, distill, tokens=num_items_in_batch).loss
        return (loss, {"loss": loss}) if return_outputs else loss

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """What training calls: in several processes the Distiller in DDP, whose parameters are the student's."""
        if training and self.args.world_size > 1 and model is self.model:
            return self.accelerator.prepare_model(self.distiller)
        return super()._wrap_model(model, training, dataloader)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.model._hf_peft_config_loaded:
            load_adapter(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.model._hf_peft_config_loaded:
            load_adapter(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


class DistillTrainer(DistillMixin, Trainer):
    """The Trainer of Transformers with a Distiller's loss."""


def load_adapter(student: Any, folder: str) -> None:
    """Read what the Trainer saved of a student's `add_adapter`, and itself reads for peft's own models alone."""
    from peft import set_peft_model_state_dict

    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    named = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(student, named, student.active_adapters()[0])


def split(inputs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The student's batch, and the mask of the rows to distill."""
    if "distill" not in inputs:
        raise UserError(
            "the batch has no distill, a bool for each row: the collator has to pass it on (TRL's own does not), and "
            "remove_unused_columns=False to leave it in the rows"
        )
    return {name: value for name, value in inputs.items() if name != "distill"}, inputs["distill"]


def main(student_path: str, teacher_path: str, data: str, out: str) -> None:
    """Train on every row once and write the model."""
    arguments = TrainingArguments(
        output_dir=out, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=1,
        learning_rate=1e-5, logging_steps=1, save_strategy="no", report_to="none", remove_unused_columns=False,
    )  # fmt: skip
    student = AutoModelForImageTextToText.from_pretrained(student_path, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float32).to(arguments.device)
    processor = read_processor(student_path)
    distiller, collator = Distiller(student, teacher), partial(collate, processor)
    trainer = DistillTrainer(distiller, arguments, collator, read_rows(data), processing_class=processor)
    trainer.train()
    trainer.save_model(out)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
