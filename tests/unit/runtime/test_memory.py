"""A GPU that is out of memory ends a run in one line, wherever it happens."""

import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from test_transport import CPU, request_of
from torch.distributed import DistBackendError

from lingu_ray.config import EvaluationConfig, TeacherConfig
from lingu_ray.errors import UserError, causes, user_error
from lingu_ray.evaluation.replicas import Hardware, Replicas
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, explained, full_node, out_of_memory
from lingu_ray.runtime.teacher.teachers import TeacherActorClient

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
FULL = torch.OutOfMemoryError(f"{SAID} Of the allocated memory 70.00 GiB is allocated by PyTorch, and …")
# What CUDA and its libraries say, in errors of several types, which torch's allocator has no part in.
OF_CUDA = {
    "CUDA error: out of memory": torch.AcceleratorError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call."
    ),
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "Cuda failure 2 'out of memory'": DistBackendError(
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.29.7\nLast error:\n"
        "Cuda failure 2 'out of memory'"
    ),
}
CURES = ("train.tokens_per_micro_batch", "train.gradient_checkpointing=true", "ray.gpus_per_worker=2")


def of_a_task(error: Exception) -> Exception:
    """The error as `ray.get` raises it."""
    return RayTaskError("f", "Traceback …", error, "ray::f", 1, "127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize("error", [FULL, of_a_task(FULL)])
def test_it_is_told_with_its_cures(error: Exception) -> None:
    """Of this process or of another: one line, with who, what helps, and how much was missing."""
    with pytest.raises(UserError) as caught, explained("worker 1", FOR_TRAINING):
        raise error
    message = str(caught.value)
    assert message.startswith("worker 1 ran out of GPU memory: lower ") and message.endswith(SAID)
    assert "\n" not in message and all(cure in message for cure in CURES)


@pytest.mark.parametrize("said", OF_CUDA)
def test_what_is_not_the_allocators_is_told_too(said: str) -> None:
    """Where a context, a handle or a buffer finds no place beside what others hold: of this process or of another."""
    for error in (OF_CUDA[said], of_a_task(OF_CUDA[said])):
        with pytest.raises(UserError) as caught, explained("the teacher", FOR_TRAINING):
            raise error
        message = str(caught.value)
        assert message.startswith("the teacher ran out of GPU memory: lower ") and message.endswith(f". {said}")
        assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("other"),
        of_a_task(ValueError("other")),
        UserError("known"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
    ],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    """They are raised as they came."""
    with pytest.raises(type(error)) as caught, explained("worker 1", FOR_TRAINING):
        raise error
    assert caught.value is error


def test_it_is_told_once() -> None:
    """By who is closest to it: the teacher, and not the worker that asks it."""
    with (
        pytest.raises(UserError, match=r"^the teacher ran out"),
        explained("the worker", FOR_TRAINING),
        explained("the teacher", FOR_TRAINING),
    ):
        raise FULL


def test_a_users_error_is_raised_from_what_wraps_it() -> None:
    """And can be looked into again: what wraps it is its cause, and it is not its own."""
    wrapping = of_a_task(UserError("known"))
    found = user_error(wrapping)
    assert found is not None and str(found) == "known"
    found.__cause__ = wrapping
    assert full_node(found) is None and out_of_memory(found) is None


def test_errors_in_a_circle_come_once_each() -> None:
    """Of errors that are causes of one another, or of themselves, which Python allows, each comes once."""
    one, other = ValueError("one"), of_a_task(KeyError("other"))
    one.__cause__, other.cause.__cause__ = other, one
    assert [str(error) for error in causes(one)] == ["one", "'other'"]
    one.__cause__ = one
    assert list(causes(one)) == [one]


def test_an_engine_names_its_model_and_settings() -> None:
    """What an engine raises comes as the error of its model."""
    replicas = Replicas("transformers", EvaluationConfig(), Hardware(1, 1, 1, 1))
    replicas.name = "teacher"
    found = replicas._explained(RayTaskError("f", "Traceback …", FULL, "ray::f", 1, "127.0.0.1"))
    assert isinstance(found, UserError) and "model teacher" in str(found)
    assert "lower evaluation.tokens_per_batch" in str(found) and str(found).endswith(SAID)


@pytest.mark.slow
def test_a_teacher_without_memory_is_asked_once(ray_cluster: str) -> None:
    """The worker gets the user's error, not Ray's with a traceback, and the actor lives on: nothing is tried again."""

    class Full:
        """A teacher whose GPU is full."""

        asked = 0

        def head(self):
            return {}

        def hidden_states(self, *_):
            self.asked += 1
            raise torch.OutOfMemoryError(f"{SAID} Of the allocated memory …")

        def times(self):
            return self.asked

    actor = ray.remote(num_cpus=0, max_restarts=2, max_task_retries=2)(Full).remote()
    client = TeacherActorClient(TeacherConfig(path="lm"), CPU, actor)
    with pytest.raises(UserError, match=r"^the teacher ran out of GPU memory: lower .*79.11 GiB$"):
        client.result(client.submit(request_of(3)))
    assert ray.get(actor.times.remote()) == 1
