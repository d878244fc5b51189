"""What each token of a sample is for: in the loss, and to the teacher.

All of it comes from the plan that training makes for the sample's micro-batch (`distill.donation`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lingu_ray.config import Config, SourceConfig
from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.donation import plan_donation, predicting


@dataclass(frozen=True)
class Roles:
    """Roles of a sample's T tokens, bool.

    `ce_T`: targets of the cross-entropy. `kd_T`: targets of the KD term. `donated_T`: their keys and values come from
    the student. `query_T`: the teacher computes them.
    """

    ce_T: Tensor
    kd_T: Tensor
    donated_T: Tensor
    query_T: Tensor


@dataclass(frozen=True)
class Judge:
    """How the samples of one source are judged: `ce_weight` and `kd_weight` are the c and k of the loss.

    `distilled`: whether a KD term is added. `teacher_vocabulary`: ids that the teacher has.
    """

    config: Config
    source: SourceConfig
    teacher_vocabulary: int

    @property
    def trained(self) -> bool:
        """Whether the policy trains on the source at all."""
        return self.source in self.config.training_sources()

    @property
    def distilled(self) -> bool:
        """Whether the policy applies KD to the source."""
        return self.config.distills(self.source)

    @property
    def ce_weight(self) -> float:
        """Weight of a token's cross-entropy."""
        return self.config.ce_weight(self.source)

    @property
    def kd_weight(self) -> float:
        """Weight of a token's KD term."""
        return self.source.kd_weight

    def roles(self, sample: Sample) -> Roles:
        """The roles of the sample's tokens; none where the source is not trained."""
        batch = collate([sample], pad_id=0)
        predicts_T = predicting(batch.supervised_BT, batch.sample_BT)[0]
        plan = plan_donation(
            batch.input_ids_BT,
            batch.sample_BT,
            batch.supervised_BT,
            batch.visual_BT,
            torch.tensor([self.distilled]),
            self.teacher_vocabulary,
            self.config.teacher.context,
            self.config.teacher.scope,
            self.config.teacher.earlier_turns,
        )
        ce_T, kd_T, donated_T, query_T = (torch.zeros_like(predicts_T) for _ in range(4))
        if not self.trained:
            return Roles(ce_T, kd_T, donated_T, query_T)
        target_N = predicts_T.nonzero().squeeze(1) + 1
        ce_T[target_N] = True
        if plan is not None:
            kd_T[target_N[plan.kd_mask_N]] = True
            donated_T[plan.donated_column_C] = True
            query_T[plan.query_column_Q] = True
        return Roles(ce_T, kd_T, donated_T, query_T)
