"""vLLM's CUDA operators and its Triton sampling mask, taken from its files without importing it."""

import importlib.util
import math
import sys
from functools import cache
from types import ModuleType

import torch
import triton
from torch import Tensor

from benchmarks.kernels.elementwise import Rope
from benchmarks.kernels.peers.flash_attention import vllm_file
from benchmarks.kernels.sampling import Sampling
from benchmarks.kernels.timing import Prepared, keeping
from lightvl.testing.norm_reference import EPS, NormInputs

torch.ops.load_library(vllm_file("_C_stable_libtorch.abi3.so"))
OPS = torch.ops._C
PAGE_OPS = torch.ops._C_cache_ops


def rms_norm(i: NormInputs) -> Prepared:
    """RMS norm."""
    out = torch.full_like(i.x, math.nan)
    return Prepared(lambda: OPS.rms_norm(out, i.x, i.weight, EPS), lambda: out)


def add_rms_norm(i: NormInputs) -> Prepared:
    """Residual and RMS norm, both in place."""
    x, residual = i.x.clone(), i.residual.clone()
    return Prepared(lambda: OPS.fused_add_rms_norm(x, residual, i.weight, EPS), lambda: x)


def silu_mul(gate_up: Tensor) -> Prepared:
    """Gated activation."""
    out = gate_up.new_full((gate_up.shape[0], gate_up.shape[1] // 2), math.nan)
    return Prepared(lambda: OPS.silu_and_mul(out, gate_up), lambda: out)


def rope_write_kv(i: Rope) -> Prepared:
    """Rotary in place with tables in bfloat16, then the write to pages."""
    q, k, v = (x.contiguous() for x in i.parts())
    cos_sin, one = i.cos_sin.bfloat16(), torch.ones((), device="cuda")
    k_cache, v_cache = i.new_cache(64, i.heads[1], i.qkv.shape[2]).unbind(1)
    flat_q, flat_k = q.flatten(1), k.flatten(1)

    def call() -> None:
        OPS.rotary_embedding(i.positions, flat_q, flat_k, q.shape[2], cos_sin, True)
        PAGE_OPS.reshape_and_cache_flash(k, v, k_cache, v_cache, i.slots, "auto", one, one)

    return Prepared(call, lambda: i.joined(q, k_cache, v_cache))


@cache
def _mask_module() -> ModuleType:
    """Its Triton file, with stand-ins for the modules of vLLM that it imports."""
    stand_ins = {
        "vllm": {},
        "vllm.triton_utils": {"tl": triton.language, "triton": triton},
        "vllm.utils": {},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.platform_utils": {
            "num_compute_units": lambda device=0: (
                torch.cuda.get_device_properties(device).multi_processor_count
            )
        },
    }
    path = vllm_file("v1/sample/ops/topk_topp_triton.py")
    for name, attributes in stand_ins.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__dict__.update(attributes)
    spec = importlib.util.spec_from_file_location("vllm_topk_topp_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(i: Sampling) -> Prepared:
    """The mask, which changes the logits and so takes a copy, softmax and an exponential race."""
    mask = _mask_module().apply_top_k_top_p_triton

    def call() -> Tensor:
        p = mask(i.logits.clone(), i.top_k, i.top_p).softmax(-1)
        ids: Tensor = (p / torch.empty_like(p).exponential_()).argmax(-1)
        return ids

    return keeping(call)
