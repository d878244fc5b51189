"""The method: KV-shared, selective distillation of a vision-language model from its own text-only ancestor.

Plain PyTorch and Transformers, without settings, Ray or files. `Distiller` is the whole of it for a training loop of
your own:

    student = AutoModelForImageTextToText.from_pretrained("HuggingFaceTB/SmolVLM-256M-Instruct", dtype="float32")
    teacher = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    distiller = Distiller(student, teacher)
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    batch["labels"] = ...                                   # -100 where nothing is to be learned
    distiller(batch, distill=[True, False]).loss.backward()  # CE on both rows, KD on the first

Shape legend of this room:

    B rows of a micro-batch      T tokens of a padded row     D hidden width
    N supervised tokens          M tokens with a KD term      V student vocabulary, U teacher's
    S distilled rows             P donated positions          Q teacher queries
    L layers                     H key/value heads            E head dimension
"""

from lingu_ray.distill.distiller import Distiller, DistillOutput, TokenCounts
from lingu_ray.errors import UserError

__all__ = ["DistillOutput", "Distiller", "TokenCounts", "UserError"]
