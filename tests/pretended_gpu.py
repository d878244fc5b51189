"""A pretended GPU: real arithmetic on the CPU, a tracked device, and a list of all that would make the host wait.

A tensor "on cuda:0" is a wrapper around a CPU tensor: Python is told that its device is cuda:0, autograd and autocast
see a CPU tensor. A dispatch mode below both sees every ATen call: it refuses operands on two devices as CUDA does, and
notes what waits: `.item()`, masks as indices, `nonzero`, copies that are not pinned and non-blocking. Not seen:
streams, CUDA's choice of attention kernel, waits inside libraries.

    with PretendedGpu() as gpu:
        model.to(CUDA)
        with gpu.during("forward"):
            model(ids.to(CUDA))
    assert gpu.waits("forward") == 0, gpu.report()
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA = torch.device("cuda:0")
# ATen calls whose CUDA kernel copies a size or a number to the host and waits for it
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class DeviceMix(RuntimeError):
    """What CUDA would refuse."""


class OnGpu(Tensor):
    """A tensor that tells Python it is on cuda:0; `inside` holds the numbers."""

    inside: Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype
        )
        made.inside = inside
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def cpu(self) -> Tensor:
        _active[-1].note("cpu, waits")
        return _Fetch.apply(self)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        places = [a for a in (*args, kwargs.pop("device", None)) if isinstance(a, str | int | torch.device)]
        rest = [a for a in args if not isinstance(a, str | int | torch.device)]
        here = self.cpu() if places and torch.device(places[0]).type == "cpu" else self
        return Tensor.to(here, *rest, **kwargs) if rest or kwargs else here

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _active[-1].call(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """Within it cuda:0 exists. `events`: (phase, what, line of lingu_ray, innermost line) → times.

    `copies`: how often tensors went from one device to the other. `calls`: (phase, ATen call) → times, views included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.events, self.copies = "", Counter[tuple[str, ...]](), 0
        self.calls = Counter[tuple[str, str]]()

    def __enter__(self) -> PretendedGpu:
        autocast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
        self._patches = ExitStack()
        for owner, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "synchronize", lambda device=None: self.note("synchronize")),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch, "autocast", lambda kind, *a, **k: autocast(_cpu_for(kind), *a, **k)),
            (torch, "is_autocast_enabled", lambda kind="cuda": enabled(_cpu_for(kind))),
            (torch, "get_autocast_dtype", lambda kind: dtype(_cpu_for(kind))),
            (torch, "tensor", _through_cpu(torch.tensor)),
            (torch, "as_tensor", _through_cpu(torch.as_tensor)),
            (torch, "empty", _empty(torch.empty)),
            (Tensor, "pin_memory", _pinned),
        ):
            self._patches.enter_context(patch.object(owner, name, value))
        self._swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *stop: Any) -> None:
        super().__exit__(*stop)
        _active.remove(self)
        torch.__future__.set_swap_module_params_on_conversion(self._swap)
        self._patches.close()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is noted inside belongs to `phase`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def waits(self, *phases: str) -> int:
        """How often the host would have waited in these phases."""
        return sum(times for (phase, *_), times in self.events.items() if phase in phases)

    def report(self) -> str:
        """Every place that waits, and how often."""
        return "\n".join(f"{times:4} × {' | '.join(event)}" for event, times in sorted(self.events.items()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One ATen call: judged, then computed on the numbers inside."""
        name = func._schema.name.removeprefix("aten::")
        tensors = _tensors((args, tuple(kwargs.values())))
        to_gpu = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if not to_gpu and not any(isinstance(x, OnGpu) for x in tensors):
            return func(*args, **kwargs)
        self.calls[self.phase, name] += 1
        if name in ("copy_", "_to_copy"):
            self._judge_copy(name, args, kwargs)
        else:
            self._judge(name, args, tensors, made=(to_gpu and name.startswith("new_")) or name.endswith("_like"))
        return _computed(func, name, args, kwargs)

    def note(self, what: str) -> None:
        """Count a wait at the line of lingu_ray that it comes from, and at the innermost line outside of torch."""
        frame, ours, inner = sys._getframe(1), "-", "-"
        while frame is not None and ours == "-":
            path = frame.f_code.co_filename
            line = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
            if inner == "-" and "/torch/" not in path and path != __file__:
                inner = line
            ours, frame = (line if "/lingu_ray/" in path else "-"), frame.f_back
        self.events[self.phase, what, ours, inner] += 1

    def _judge_copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        source, there = (args[1], isinstance(args[0], OnGpu)) if name == "copy_" else (args[0], True)
        if isinstance(source, OnGpu) != there and source.numel():
            self.copies += 1
            # without non_blocking the copy ends in cudaStreamSynchronize
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if not (non_blocking and getattr(source if there else args[0], "pinned", False)):
                self.note(f"{name} between devices")

    def _judge(self, name: str, args: Any, tensors: list[Tensor], made: bool) -> None:
        strangers = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim and not made]
        if name in _WAITING or (name == "repeat_interleave" and len(args) < 2):
            self.note(name)
        if name in _INDEXING and isinstance(args[0], OnGpu):
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype == torch.bool for i in indices):
                self.note(f"{name} by a mask")
            for index in (i for i in indices if not isinstance(i, OnGpu)):
                self.note(f"{name} by a CPU index")
                strangers = [x for x in strangers if x is not index]
        if strangers and not _in_backward():  # there zeros made in C++ are on the CPU, as far as C++ knows
            raise DeviceMix(f"{name}: {[(tuple(x.shape), x.dtype, str(x.device)) for x in tensors]}")


def _computed(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The call on the numbers inside; results are on the GPU."""
    inner_args = _changed(_inside, args)
    inner = {key: _changed(_inside, value) for key, value in kwargs.items()}
    inner |= {"device": torch.device("cpu")} if "device" in inner else {}
    if func is torch.ops.aten.addmm.dtype_out:  # CUDA's alone: factors of bf16, their sum in float32
        total, a, b, _ = inner_args
        if a.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs")
        inner["out"].copy_(a.float() @ b.float() + (inner.get("beta", 1) * total if inner.get("beta", 1) else 0))
        return kwargs["out"]
    if name == "histc":  # of integers: CUDA's alone, too
        numbers, *bins = inner_args
        result = func(numbers.float(), *bins, **inner).to(numbers.dtype)
    else:
        result = func(*inner_args, **inner)
    if name == "copy_" and not isinstance(args[0], OnGpu):
        return args[0]
    if name == "_local_scalar_dense":
        return result
    return return_and_correct_aliasing(func, args, kwargs, _changed(OnGpu, result))


def _changed(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same nest of lists and tuples with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_changed(change, item) for item in value])
    return value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a nest of lists and tuples."""
    found: list[Tensor] = []
    _changed(found.append, value)
    return found


def _inside(tensor: Tensor) -> Tensor:
    return tensor.inside if isinstance(tensor, OnGpu) else tensor


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnGpu) -> Tensor:
        return tensor.inside.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return OnGpu(grads[0])


def _cpu_for(kind: str) -> str:
    return "cpu" if kind == "cuda" else kind


def _through_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of torch that goes around the mode."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        args = _changed(lambda x: (x.cpu() if x.ndim else x.item()) if isinstance(x, OnGpu) else x, args)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        return make(*args, device="cpu", **kwargs).to(CUDA) if on_gpu else make(*args, device=device, **kwargs)

    return made


def _empty(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.empty`, which makes memory that the GPU copies to by itself, too."""

    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        tensor: Any = make(*args, **kwargs)
        if pin_memory:
            tensor.pinned = True
        return tensor

    return made


def _pinned(tensor: Tensor) -> Tensor:
    """What `pin_memory` returns: a copy in memory from which the GPU copies by itself; refused what CUDA refuses."""
    if isinstance(tensor, OnGpu):
        raise RuntimeError("cannot pin 'CUDAFloatType' only dense CPU tensors can be pinned")
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise RuntimeError("unsupported operation: more than one element of the written-to tensor refers to one place")
    copy: Any = tensor.clone()
    copy.pinned = True
    return copy


def _in_backward() -> bool:
    frame: Any = sys._getframe(2)
    while frame.f_code.co_filename == __file__ or "torch/_" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_name == "_engine_run_backward"


_active: list[PretendedGpu] = []
