"""Nodes that are taken away: how workers learn of it, and how they end so that Ray Train counts a preemption.

Ray Train would have workers train on until the node is gone. Which error it then hears of first is chance: that of the
lost worker, which says that its node was preempted, or that of another one, which lost its peer and so counts as a
failure. Here all workers end as soon as the state is saved: the node is free at once, and the wait for another begins.
"""

from __future__ import annotations

import logging

import ray.train
from ray.exceptions import RayActorError

log = logging.getLogger(__name__)

GIVE_UP_BEFORE_S = -1.0
"""Grace of Ray Train's controller after the node's deadline, in seconds: it ends a step that is too long for the notice
before the node does, whose end would be counted as above."""


def node_is_leaving() -> bool:
    """Whether a node of any worker is about to be taken away. All workers must call it, and get the same answer.

    Also where the actor is gone by which Ray Train's workers agree on it: they have to start anew for another.
    """
    try:
        return ray.train.get_preemption_info() is not None
    except RayActorError as error:
        log.warning("Ray Train's workers cannot agree any more, as if a node were taken away: %s", error)
        return True


def preempted() -> RayActorError:
    """The error by which a worker ends for the sake of a node that leaves: Ray Train's own sign of a preemption."""
    return RayActorError(error_msg="a node is taken away, or who tells of it; the state is saved", preempted=True)
