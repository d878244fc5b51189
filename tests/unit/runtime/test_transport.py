"""Every transport carries the same bytes to the teacher actor, and one that cannot work is refused by name."""

import importlib.util
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock, patch

import psutil
import pytest
import ray
import torch
from ray._private.state import actors
from safetensors.torch import load_file, save_file
from tiny import tiny_teacher

from lingu_ray import waiting
from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.load import load_teacher
from lingu_ray.runtime.teacher import teachers
from lingu_ray.runtime.teacher.teachers import TeacherActorClient, start_teacher
from lingu_ray.runtime.teacher.transport import (
    ObjectStore,
    check_transport,
    choose_transport,
    copy_to_host,
    from_bytes,
    make_transport,
    to_bytes,
)

CPU = torch.device("cpu")
needs_nixl = pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="nixl is not installed")


def request_of(donated: int, layers: int = 3, heads: int = 2, dimension: int = 32, queries: int = 5) -> TeacherRequest:
    """One row whose first `donated` positions are the student's, with random KV, and whose rest are queries."""
    generator = torch.Generator().manual_seed(donated)
    kv_shape = (layers, 2, donated, heads, dimension) if donated else (0, 2, 0, 0, 0)
    index_Q = torch.arange(donated, donated + queries)
    return TeacherRequest(
        donated_index_P=torch.arange(donated),
        donated_count_R=torch.tensor([donated]),
        donated_kv_P=torch.arange(donated),
        query_id_Q=torch.randint(3, 300, (queries,), generator=generator),
        query_index_Q=index_Q,
        query_count_R=torch.tensor([queries]),
        predicts_Q=torch.ones(queries, dtype=torch.bool),
        width=torch.tensor(donated + queries),
        kv_L2CHE=torch.randn(kv_shape, generator=generator),
        query_position_Q=index_Q,
    )


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A tiny teacher on disk."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_teacher(folder=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["object_store", pytest.param("nixl", marks=needs_nixl)])
def test_actor_returns_what_the_process_itself_does(ray_cluster, teacher_folder, transport):
    """With much KV, with little and with none, the actor returns what a teacher here returns, to the bit."""
    settings = TeacherConfig(path=str(teacher_folder), transport=transport)
    here = load_teacher(settings, torch.float32, CPU)
    client = TeacherActorClient(settings, CPU, start_teacher(settings, torch.float32, CPU, threads=1))
    requests = [
        request_of(donated) for donated in (2000, 3, 0)
    ]  # 3 MB: through shared memory; 4 KB: in the call itself
    tickets = [client.submit(request) for request in requests]
    torch.set_num_threads(1)
    for request, ticket in zip(requests, tickets, strict=True):
        assert torch.equal(client.result(ticket), here.hidden_states(request))


@pytest.mark.slow
def test_an_actor_that_cannot_load_its_teacher_says_why(ray_cluster, tmp_path):
    """The error is that of loading, not that an actor died: such a teacher may be the hub's, which is loaded late."""
    tiny_teacher(folder=tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"v_head.weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    settings = TeacherConfig(path=str(tmp_path))
    client = TeacherActorClient(settings, CPU, start_teacher(settings, torch.float32, CPU, threads=1))
    with pytest.raises(
        UserError, match=r"teacher.path=.*: its weights are not those of .*\n  left over: v_head.weight"
    ):
        _ = client.output_head


@pytest.mark.slow
def test_an_actor_that_hangs_is_told_and_not_waited_for_for_ever(ray_cluster, teacher_folder, monkeypatch, caplog):
    """Its process is there, and stopped: the worker says what it waits for and where to look, and ends with an error
    that Ray Train starts it again after."""
    settings = TeacherConfig(path=str(teacher_folder))
    client = TeacherActorClient(settings, CPU, start_teacher(settings, torch.float32, CPU, threads=1))
    client.result(client.submit(request_of(3)))
    monkeypatch.setattr(waiting, "FIRST_WORD_S", 0.1)
    monkeypatch.setattr(waiting, "_known", {})
    monkeypatch.setattr(teachers, "_ANSWER_WITHIN_S", 3.0)
    started = [actor["Pid"] for actor in actors().values() if actor["ActorID"] == client.actor._actor_id.hex()]
    teacher = psutil.Process(*started)
    teacher.suspend()
    try:
        with pytest.raises(TimeoutError, match=r"has not answered for 3 s: see `ps ax \| grep TeacherActor`"):
            client.result(client.submit(request_of(3)))
    finally:
        teacher.resume()
    assert "(T: stopped), and logs/teacher-*.jsonl" in caplog.text and "waiting for its teacher's answer" in caplog.text
    assert client.result(client.submit(request_of(3))).shape[0] == 5


@pytest.mark.slow
@needs_nixl
def test_nixl_carries_every_dtype_bit_by_bit(ray_cluster):
    """What arrives over NIXL has the KV's bytes, dtype and shape, in bf16 too, and the store carried none of it."""

    @ray.remote(num_cpus=0, enable_tensor_transport=True)
    class Receiver:
        def kv(self, fields, shared):
            return to_bytes(make_transport("nixl").receive(fields, shared).kv_L2CHE)

    receiver = Receiver.remote()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        request = request_of(50)
        request = TeacherRequest(**{**vars(request), "kv_L2CHE": request.kv_L2CHE.to(dtype)})
        fields, shared = make_transport("nixl").send(request)()
        assert "kv_L2CHE" not in fields and isinstance(shared, ray.ObjectRef)
        kv_L2CHE = from_bytes(ray.get(receiver.kv.remote(fields, shared)))
        assert kv_L2CHE.dtype == dtype and torch.equal(kv_L2CHE, request.kv_L2CHE)


def test_bytes_copy_nothing():
    """On the CPU a contiguous tensor becomes bytes and a tensor again in place: same memory all the way."""
    request = request_of(10)
    fields, shared = ObjectStore().send(request)()
    assert ObjectStore().receive(fields, shared).kv_L2CHE.data_ptr() == request.kv_L2CHE.data_ptr()


def test_the_thread_that_waits_uses_the_gpu_of_the_copy():
    """A new thread's own GPU is the first one, which may be another worker's: CUDA would begin a context there."""
    current, waited_on = ["cuda:0"], []

    @contextmanager
    def device(wanted):
        current.append(str(wanted))
        yield
        current.pop()

    tensor = SimpleNamespace(device=torch.device("cuda:1"), shape=(1,), dtype=torch.float32)
    event = Mock(synchronize=lambda: waited_on.append(current[-1]))
    host = Mock()
    with (
        patch.object(torch, "empty", lambda *_, **__: host),
        patch.object(torch.cuda, "Event", lambda: event),
        patch.object(torch.cuda, "current_stream", Mock()),
        patch.object(torch.cuda, "device", device),
    ):
        assert copy_to_host(tensor)() is host
    assert waited_on == ["cuda:1"]


@pytest.mark.parametrize(
    ("transport", "device", "gpus", "message"),
    [
        ("cuda_ipc", "cpu", 0, "teacher.transport=cuda_ipc shares GPU memory: give the workers a GPU"),
        ("cuda_ipc", "cuda", 2, "needs worker and teacher on one GPU, and they have 2"),
        pytest.param(
            "nixl", "cpu", 0, r"teacher.transport=nixl needs a package: pip install 'lingu-ray\[nixl\]'",
            marks=pytest.mark.skipif(importlib.util.find_spec("nixl") is not None, reason="nixl is installed"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(transport, device, gpus, message):
    """A transport that this device, number of GPUs or installation rules out is an error with setting and cure."""
    settings = TeacherConfig(path="lm", transport=transport)
    with pytest.raises(UserError, match=message) as caught:
        check_transport(settings, torch.device(device), gpus)
    assert "teacher.transport=object_store" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "device", "gpus", "chosen"),
    [
        ({}, "cpu", 0, "object_store"),
        ({}, "cuda", 1, "cuda_ipc"),
        ({}, "cuda", 2, "object_store"),  # the teacher has the second one
        ({"placement": "node"}, "cuda", 1, "object_store"),
        ({"transport": "object_store"}, "cuda", 1, "object_store"),
        ({"transport": "nixl"}, "cpu", 0, "nixl"),
    ],
)
def test_auto_takes_the_shortest_way(given, device, gpus, chosen):
    """One GPU for an actor and its worker: nothing is moved; elsewhere the store; what is set, stays."""
    assert choose_transport(TeacherConfig(path="lm", **given), torch.device(device), gpus) == chosen


@pytest.mark.slow
def test_auto_takes_the_store_where_memory_cannot_be_lent(ray_cluster, teacher_folder, monkeypatch, caplog):
    """An actor that cannot open what its worker lends (there is no GPU) is asked over the store, and it is said."""
    monkeypatch.setattr(teachers, "choose_transport", lambda *_: "cuda_ipc")
    settings = TeacherConfig(path=str(teacher_folder))
    actor = ray.remote(num_cpus=0)(teachers.TeacherActor).remote(settings, torch.float32, "cpu", 1)
    client = TeacherActorClient(settings, CPU, actor)
    request = request_of(100)
    hidden_MD = client.result(client.submit(request))
    assert client.transport == "object_store"
    assert "the teacher cannot read its worker's GPU memory, so KV takes the longer way" in caplog.text
    torch.set_num_threads(1)
    assert torch.equal(hidden_MD, load_teacher(settings, torch.float32, CPU).hidden_states(request))


def test_in_process_teacher_has_no_transport():
    """A transport to an actor is refused where there is no actor."""
    with pytest.raises(ValueError, match=r"teacher\.transport=nixl needs a teacher actor"):
        TeacherConfig(path="lm", placement="in_process", transport="nixl")
