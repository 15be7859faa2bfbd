"""A CUDA device without a GPU: tensors on it have shapes, dtypes and strides, and no values.

    with fake_cuda() as gpu:
        model.to(CUDA)(x.to(CUDA)).sum().backward()
    print(gpu.kernels.total(), gpu.waits)

Tensors on the CPU are real. Those on CUDA are PyTorch's FakeTensors, which refuse what a GPU refuses, such as operands
on two devices. Every value read from the device is 0. The context counts what starts a kernel there, the bytes that
kernels read and write, and each time the CPU waits for the GPU. No compiler is needed: backward passes are run by a
loop in Python, because PyTorch's engine asks the CUDA driver for the device.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import vidm

CUDA = torch.device("cuda", 0)
PACKAGE = Path(vidm.__file__).parent
# Operators whose result shares memory with an input, or which only reserve memory.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """The bytes of a tensor's distinct elements: a dimension of stride 0 is read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(sizes).numel() * tensor.element_size()


def _caller() -> str:
    """The innermost line of the package on the stack."""
    frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).parent == PACKAGE]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "outside of the package"


class FakeCuda(TorchDispatchMode):
    """Runs operators on the fake device, and counts: `kernels` by operator, `bytes`, and `waits` by line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a property of a tensor
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        to_device = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not to_device and not any(tensor.is_cuda for tensor in inputs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits[_caller()] += 1
            return False if inputs[0].dtype == torch.bool else 0
        out = func(*args, **kwargs)
        outputs = _tensors(out)
        self._count(func, args, kwargs, inputs, outputs)
        with unset_fake_temporarily():
            return tree_map_only(Tensor, lambda x: x if x.is_cuda else torch.zeros(x.shape, dtype=x.dtype), out)

    def _count(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func._schema.name.removeprefix("aten::")
        copies = name in ("_to_copy", "copy_") and len({tensor.device.type for tensor in inputs + outputs}) == 2
        if copies:
            source = inputs[-1]
            free = kwargs.get("non_blocking") or args[2:] == (True,)
            if not (free and getattr(source, "pinned", False)):
                self.waits[_caller()] += 1
        elif not func.is_view and name not in ALLOCATIONS:
            self.kernels[name] += 1
            self.bytes += sum(map(_bytes, inputs + outputs))


def backward_in_python(loss: Any, gradient: Tensor | None = None) -> None:
    """Tensor.backward without PyTorch's engine: each node of the graph after all nodes that use its result."""
    missing: Counter[Any] = Counter()  # gradients that a node still waits for
    nodes = [loss.grad_fn]
    for node in nodes:
        for below, _ in node.next_functions:
            if below and below not in missing:
                nodes.append(below)
            missing[below] += 1
    sums: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss) if gradient is None else gradient}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        found = sums.pop(node, {})
        arguments = [found.get(place) for place in range(len(node._input_metadata))]
        with torch.no_grad():
            gradients = (node if callable(node) else node.apply)(*arguments) if found else None
        if not isinstance(gradients, tuple):
            gradients = (gradients,) * len(node.next_functions)
        for (below, place), each in zip(node.next_functions, gradients, strict=True):
            missing[below] -= 1
            if below and each is not None:
                wanted = below._input_metadata[place]
                each = each.sum_to_size(wanted.shape).to(wanted.dtype)
                partial = sums.setdefault(below, {})
                partial[place] = partial[place] + each if place in partial else each
            if below and not missing[below]:
                ready.append(below)


def _pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module._apply with new parameters, since those of fake tensors cannot be exchanged."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = buffer if buffer is None else function(buffer)
    return module


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A context with the device cuda:0, which PyTorch otherwise refuses to use without a driver."""
    gpu = FakeCuda()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        gpu,
    ):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by deepcopy
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(torch.Tensor, "backward", backward_in_python)
        patch.setattr(torch.Tensor, "pin_memory", _pinned)
        # Activation checkpointing computes activations again once for each number of a backward pass.
        patch.setattr(torch._C, "_current_graph_task_id", lambda: 0)
        yield gpu
