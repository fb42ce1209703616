"""What the tests of the CUDA kernels share: inputs on the GPU, the operators' calls, captures."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightvl.testing.cases import CUDA_OPERATORS, OPERATORS
from lightvl.testing.image_reference import ImageInputs

BUILT = torch._C._dispatch_has_kernel_for_dispatch_key("lightvl::rms_norm", "CUDA")

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BUILT, reason="this build of lightvl has no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

ALL = OPERATORS | CUDA_OPERATORS
ATTENTION = ("paged_attention", "vision_attention")
HEAD_DIMS = (64, 96, 128)
HALF_DTYPES = (torch.bfloat16, torch.float16)
EXACT = ("sample", "gather_embeddings")  # no rounding of their own


def supported(name: str, case: Any, dtype: torch.dtype) -> bool:
    """Whether a GPU runs the case: some operators are for half precision, some head dims alone."""
    if name in CUDA_OPERATORS:
        return dtype in HALF_DTYPES
    return name not in ATTENTION or (case.head_dim in HEAD_DIMS and dtype in HALF_DTYPES)


def copy_storage(x: Tensor) -> Tensor:
    """The tensor on the GPU with its strides and all that lies between its elements."""
    whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return whole.cuda().as_strided(x.shape, x.stride(), x.storage_offset())


def to_gpu(inputs: Any) -> Any:
    """Inputs of any operator with their tensors on the GPU."""
    if isinstance(inputs, Tensor):
        return copy_storage(inputs)
    if isinstance(inputs, tuple):
        return tuple(to_gpu(x) for x in inputs)
    if isinstance(inputs, ImageInputs):  # grids and mean_std stay where the host reads them
        return replace(inputs, images=[image.cuda() for image in inputs.images])
    if is_dataclass(inputs) and not isinstance(inputs, type):
        moved = {field.name: to_gpu(getattr(inputs, field.name)) for field in fields(inputs)}
        return replace(inputs, **moved)
    return inputs


def tensors(inputs: Any) -> list[Tensor]:
    """All tensors of an operator's inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, tuple | list):
        return [x for part in inputs for x in tensors(part)]
    if is_dataclass(inputs) and not isinstance(inputs, type):
        return [x for field in fields(inputs) for x in tensors(getattr(inputs, field.name))]
    return []


def larger_case(name: str) -> Any:
    """The case of an operator with the most elements among those that a GPU runs."""
    operator = ALL[name]
    cases = [case for case in operator.cases if supported(name, case, torch.bfloat16)]
    sizes = [sum(x.numel() for x in tensors(operator.make(c, torch.bfloat16))) for c in cases]
    return cases[sizes.index(max(sizes))]


class Calls(TorchDispatchMode):
    """Records the calls of our operators, with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the call, and keep it if it is ours."""
        if func.namespace == "lightvl":
            self.made.append((func, args))
        return func(*args, **(kwargs or {}))


def captured(run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of the call and the output that its replays write to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out
