"""The teacher: the original text-only LM, frozen; and how the method reaches one, in this process or elsewhere."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from lingu_ray.distill.continuation import TeacherRequest, continue_from_kv
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.grouped_attention import use_grouped_attention
from lingu_ray.distill.head import OutputHead, check_head, output_head
from lingu_ray.distill.self_check import check_continuation


class Teacher:
    """A frozen causal LM that continues from a student's KV; a `TeacherClient` of this process.

    The model is changed: eval mode, no parameter requires a gradient, and an attention for few queries over many keys.

    Args:
        model: the LM.
        vocabulary: how many ids its tokenizer knows (`pair.known_ids`): rows of the head beyond them are padding that
            nobody trained, or tokens of other models. None: all rows count.

    Raises:
        UserError: its output head is none that the method can use, or it cannot be continued from its own KV (see
            `check_continuation`).
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None = None):
        check_head(model)
        use_exact_attention(model)
        use_grouped_attention(model)
        self.model = model.eval().requires_grad_(False)
        self.decoder, self.vocabulary = model.get_decoder(), vocabulary
        check_continuation(self.decoder)

    @property
    def output_head(self) -> OutputHead:
        """How its final hidden states become logits of the ids that it knows; it has no gradient."""
        head = output_head(self.model)
        return head if self.vocabulary is None else head.first(self.vocabulary)

    def hidden_states(self, request: TeacherRequest) -> Tensor:
        """`hidden_MD` of the queries that predict a supervised token (see `continue_from_kv`), in eval mode."""
        if self.model.training:  # by the `train()` of a module that holds it, a LightningModule for instance
            self.model.eval()
        return continue_from_kv(self.decoder, request)

    def submit(self, request: TeacherRequest) -> Tensor:
        """Answer at once: the ticket is the result."""
        return self.hidden_states(request)

    def result(self, ticket: Tensor) -> Tensor:
        """The ticket."""
        return ticket


class TeacherClient(Protocol):
    """Where requests are sent: a teacher here, or in another process that works while the student continues."""

    @property
    def output_head(self) -> OutputHead:
        """The teacher's output head, on the student's device."""
        ...

    def submit(self, request: TeacherRequest) -> Any:
        """Send a request; returns a ticket at once."""
        ...

    def result(self, ticket: Any) -> Tensor:
        """Wait for the ticket's `hidden_MD`, on the student's device."""
        ...
