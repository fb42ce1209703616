"""The kernels that ours are compared with: one module a peer, each importing what is installed.

An adapter takes a row's inputs and returns a `Prepared`; it raises `Missing` where the shape has no
such kernel. A module whose package isn't installed, or doesn't load, is skipped with its reason.
"""

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from benchmarks.kernels.timing import Prepared


class Missing(Exception):
    """The peer isn't installed or has no kernel for the shape."""


# Of each table, the peers' names and adapters: module and function.
PEERS: dict[str, dict[str, tuple[str, str]]] = {
    "decode": {
        "FlashInfer fa2": ("flashinfer", "decode"),
        "FlashInfer XQA": ("flashinfer", "decode_xqa"),
        "FlashAttention-3": ("flash_attention", "decode"),
        "cuDNN, contiguous": ("torch_gpu", "decode_cudnn"),
    },
    "prefill": {
        "FlashInfer fa3": ("flashinfer", "prefill"),
        "FlashAttention-3": ("flash_attention", "prefill"),
        "FlashAttention-3, contiguous": ("flash_attention", "prefill_contiguous"),
        "cuDNN, contiguous": ("torch_gpu", "prefill_cudnn"),
    },
    "vision": {
        "FlashInfer fa3, copied to contiguous": ("flashinfer", "vision"),
        "FlashAttention-3": ("flash_attention", "vision"),
        "cuDNN": ("torch_gpu", "vision_cudnn"),
    },
    "rms_norm": {
        "FlashInfer": ("flashinfer", "rms_norm"),
        "vLLM": ("vllm", "rms_norm"),
        "Liger": ("liger", "rms_norm"),
        "torch": ("torch_gpu", "rms_norm"),
    },
    "add_rms_norm": {
        "FlashInfer": ("flashinfer", "add_rms_norm"),
        "vLLM": ("vllm", "add_rms_norm"),
    },
    "layer_norm": {
        "FlashInfer": ("flashinfer", "layer_norm"),
        "torch": ("torch_gpu", "layer_norm"),
    },
    "scale_add": {"torch, 2 kernels": ("torch_gpu", "scale_add")},
    "silu_mul": {
        "FlashInfer": ("flashinfer", "silu_mul"),
        "vLLM": ("vllm", "silu_mul"),
        "torch.compile": ("torch_gpu", "silu_mul_compiled"),
    },
    "gelu": {
        "torch, without bias": ("torch_gpu", "gelu"),
        "torch, 2 kernels": ("torch_gpu", "gelu_bias"),
    },
    "rope_write_kv": {
        "FlashInfer, 2 kernels": ("flashinfer", "rope_write_kv"),
        "vLLM, 2 kernels": ("vllm", "rope_write_kv"),
    },
    "gather_embeddings": {"torch": ("torch_gpu", "gather_embeddings")},
    "linear": {"cuBLAS": ("torch_gpu", "linear")},
    "image": {
        "torchvision": ("torchvision", "image"),
        "GotOcr2 processor": ("transformers", "image"),
    },
    "greedy": {"torch argmax": ("torch_gpu", "argmax")},
    "sampling": {
        "FlashInfer": ("flashinfer", "sample"),
        "vLLM Triton mask + draw": ("vllm", "sample"),
        "torch topk": ("torch_gpu", "sample_topk"),
    },
}


@cache
def _module(name: str) -> ModuleType | str:
    """The peer's module, or the reason why it can't be used."""
    try:
        return importlib.import_module(f"benchmarks.kernels.peers.{name}")
    except Exception as error:  # whatever a foreign package does when it is imported
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"


def adapter(module: str, function: str) -> Callable[[Any], Prepared]:
    """The adapter of a peer.

    Raises:
        Missing: its package doesn't load.
    """
    loaded = _module(module)
    if isinstance(loaded, str):
        raise Missing(loaded)
    found: Callable[[Any], Prepared] = getattr(loaded, function)
    return found
