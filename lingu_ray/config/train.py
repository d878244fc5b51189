"""Settings of the optimization: steps, batches, learning rates, precision, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lingu_ray.config.base import Section, rule
from lingu_ray.config.facts import MAY_CHANGE, NOT_COMPARED

Attention = Literal["sdpa", "flash_attention_2", "flash_attention_3"]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class LearningRates(Section):
    """One learning rate per parameter group; 0 freezes the group."""

    vision: float = Field(0.0, ge=0, description="vision tower")
    projector: float = Field(5e-5, ge=0, description="what maps image features to the decoder's width")
    decoder: float = Field(1e-5, ge=0, description="language decoder, embeddings and head")

    @property
    def shown(self) -> float:
        """The learning rate that metrics show: the decoder's, or if it is frozen the largest of the others."""
        return self.decoder or max(self.vision, self.projector)


class LoraConfig(Section):
    """Low-rank adapters on the decoder's linear layers (LoRA); the export has them merged."""

    rank: PositiveInt = Field(16, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="the adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: tuple[str, ...] = Field((), description="names of layers, such as q_proj; empty: every linear layer")


class TrainConfig(Section):
    """The optimization."""

    # a change moves the run's end, and its schedules: `runtime/resume.py` warns of it
    steps: Annotated[PositiveInt, MAY_CHANGE] = Field(1000, description="optimizer steps")
    rows_per_step: PositiveInt = Field(32, description="rows of one optimizer step, over all workers")
    tokens_per_micro_batch: Annotated[PositiveInt, MAY_CHANGE] = Field(
        8192, description="most tokens of one forward pass, padding included; what memory allows"
    )
    packing: Annotated[bool, MAY_CHANGE] = Field(
        False, description="several samples in one row instead of padding; none sees another; pays with flash attention"
    )
    learning_rates: LearningRates = Field(LearningRates(), description="by parameter group")
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.95), description="AdamW betas, each at least 0 and below 1")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (matrices only)")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the learning rate rises linearly")
    min_lr: float = Field(
        0.1, ge=0, le=1, description="share of the learning rate that is left at the end of its cosine decay"
    )
    grad_clip: float = Field(
        1.0, gt=0, allow_inf_nan=True, description="largest global gradient norm; .inf: gradients are not clipped"
    )
    max_bad_steps: Annotated[int, MAY_CHANGE, NOT_COMPARED] = Field(
        3, ge=0, description="steps skipped in a run, since their loss or gradient is not finite, before it stops"
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="bf16: autocast; weights stay fp32; auto: bf16 on GPUs that compute in it and on CPUs where it is "
        "clearly faster, chosen once for a run",
    )
    attention: Annotated[Attention, MAY_CHANGE] = Field(
        "sdpa",
        description="the student's attention: PyTorch's, or that of flash-attn 2 or 3, for packed bf16 on GPUs",
    )
    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = Field(
        False, description="compute activations again in the backward pass; saves memory, costs time"
    )
    lora: LoraConfig | None = Field(
        None, description="train adapters, with learning_rates.decoder, in place of the decoder's weights; null: off"
    )
    parallelism: Annotated[Literal["ddp", "fsdp2"], MAY_CHANGE] = Field(
        "ddp", description="ddp: the full model on each worker; fsdp2: the decoder's layers sharded over the workers"
    )
    compile: Annotated[bool, MAY_CHANGE] = Field(
        False, description="torch.compile each decoder layer; the first steps are slow"
    )
    validate_every: Annotated[int, MAY_CHANGE, NOT_COMPARED] = Field(
        100, ge=0, description="steps between validations; 0: at the end only"
    )
    sample_every: Annotated[int, MAY_CHANGE, NOT_COMPARED] = Field(
        100, ge=0, description="steps between sample answers to validation rows; 0: at the end only"
    )
    samples: Annotated[int, MAY_CHANGE, NOT_COMPARED] = Field(4, ge=0, description="validation rows answered each time")
    checkpoint_every: Annotated[PositiveInt, MAY_CHANGE, NOT_COMPARED] = Field(
        100, description="steps between checkpoints"
    )
    checkpoint: Annotated[Literal["auto", "whole", "sharded"], MAY_CHANGE, NOT_COMPARED] = Field(
        "auto",
        description="whole: the first worker writes while training waits; sharded: each worker writes its part while "
        "training goes on; auto: sharded above 256 MB",
    )
    keep_last: Annotated[PositiveInt, MAY_CHANGE, NOT_COMPARED] = Field(
        2, description="newest checkpoints kept, besides the best by validation cross-entropy"
    )

    def progress(self, step: int) -> float:
        """Share of the run done at `step` (0-based): 0 at the first, 1 at the last."""
        return step / max(1, self.steps - 1)

    @rule
    def _something_learns(self) -> TrainConfig:
        if not any(self.learning_rates.model_dump().values()):
            raise ValueError("train.learning_rates are all 0, and nothing would be trained: set one above 0")
        needs = "train.lora" if self.lora else "train.parallelism=fsdp2" if self.parallelism == "fsdp2" else None
        if needs and not self.learning_rates.decoder:
            raise ValueError(f"{needs} needs a decoder that learns: set train.learning_rates.decoder above 0")
        return self
