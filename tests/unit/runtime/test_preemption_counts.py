"""What Ray Train makes of the way in which workers end for the sake of a node that leaves."""

import time

import cloudpickle
import pytest
from ray.train import PreemptionError, PreemptionInfo
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime import ray_train, run
from lingu_ray.runtime.cluster.preemption import preempted


@pytest.mark.parametrize(("error", "again"), [(preempted(), True), (OSError(), False)])
def test_counted_as_a_preemption(error, again):
    """The workers' error, as it reaches the controller, is no failure; any other is."""
    policy = DefaultFailurePolicy(ray_train.failures(RayConfig(max_failures=0, max_preemptions=1)))
    status = WorkerStatus(running=False, error=cloudpickle.loads(cloudpickle.dumps(error)))
    group = WorkerGroupPollStatus({0: status, 1: status})
    decisions = [policy.make_decision(group.get_worker_group_error()) for _ in range(2)]
    assert decisions == [FailureDecision.RETRY if again else FailureDecision.RAISE, FailureDecision.RAISE]
    assert group.has_preempted_worker() is again


def test_a_step_that_is_too_long_is_ended_before_the_node():
    """The controller gives up a second before the time that the node was given is over."""
    grace = ray_train.failures(RayConfig()).preemption_grace_s
    ends = [
        TrainController._is_preemption_deadline_exceeded(PreemptionInfo(int((time.time() + left) * 1000), {}), 0, grace)
        for left in (0.5, 30)
    ]
    assert ends == [True, False]


def test_too_many_preemptions_are_said():
    """The user is told which limit it was, and how to resume."""
    error = run._readable(PreemptionError(PreemptionInfo(None, {"node": [0]})))
    assert isinstance(error, UserError) and "than ray.max_preemptions allows: run the same command" in str(error)
