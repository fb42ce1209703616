"""What a call of each operator's typed function costs the host, checks and launch included.

Once into outputs that are there, once with new ones, which torch makes.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.kernels import image, paged, sampling, vision
from benchmarks.kernels.elementwise import make_rope, norm_inputs
from benchmarks.kernels.linear import make as make_linear
from benchmarks.kernels.timing import host_us, random
from lightvl import ops
from lightvl.testing.norm_reference import EPS
from lightvl.testing.sampling_reference import SampleCase

FEW, MANY = 8.0, 15.0  # microseconds for up to four tensors, and for more
TURNS = 8


def _calls() -> dict[str, tuple[Callable[..., object], float]]:
    """Each operator on a shape that keeps the GPU for less than the host, and its budget."""
    i = norm_inputs(1, 3584)
    gate_up = random(1, 7168)
    gather = (torch.zeros(1, dtype=torch.int64, device="cuda"), random(9, 3584))
    image_rows, arena = torch.zeros(1, dtype=torch.int32, device="cuda"), random(9, 3584)
    rope = make_rope(1)
    q, k, v = rope.parts()
    k_cache, v_cache = (x.contiguous() for x in rope.new_cache(4, 64, 128).unbind(1))
    rope_arguments = (q, k, v, rope.cos_sin, rope.rows, rope.slots, k_cache, v_cache)
    decode = paged.make("2B", (64,), 1, 64)
    keys, values = decode.kv.unbind(1)
    tables = (decode.table, decode.cu_q_lens, decode.context_lens)
    prefill = paged.make("2B", (64,), 64, 64)
    prefill_keys, prefill_values = prefill.kv.unbind(1)
    prefill_tables = (prefill.table, prefill.cu_q_lens, prefill.context_lens)
    tile = vision.Tiles(random(65, 3, 2, 64), 1).parts
    ends = torch.tensor([0, 65], dtype=torch.int32, device="cuda")
    draw = sampling.make(SampleCase(1, 1000, 1.0, top_k=50, top_p=0.9))
    logits, params = draw.logits[:, :1000], draw.params
    picture = image.make(64, 64, 1, 1).arguments()
    few, scale = make_linear(1, 896, 896, "residual"), paged.DIM**-0.5
    return {
        "rms_norm": (partial(ops.rms_norm, i.x, i.weight, EPS), FEW),
        "add_rms_norm": (partial(ops.add_rms_norm, i.x, i.residual, i.weight, EPS), FEW),
        "layer_norm": (partial(ops.layer_norm, i.x, i.weight, i.bias, EPS), FEW),
        "scale_add": (partial(ops.scale_add, i.x, i.weight, i.residual, i.bias), MANY),
        "silu_mul": (partial(ops.silu_mul, gate_up), FEW),
        "gelu": (partial(ops.gelu, i.x, i.bias), FEW),
        "gather_embeddings": (
            partial(ops.gather_embeddings, *gather, image_rows, arena),
            MANY,
        ),
        "rope_write_kv": (partial(ops.rope_write_kv, *rope_arguments), MANY),
        "paged_attention, decode": (
            partial(ops.paged_attention, decode.q, keys, values, *tables, scale, 1),
            MANY,
        ),
        "paged_attention, prefill": (
            partial(
                ops.paged_attention,
                prefill.q,
                prefill_keys,
                prefill_values,
                *prefill_tables,
                scale,
                64,
            ),
            MANY,
        ),
        "vision_attention": (partial(ops.vision_attention, *tile, ends, 65, 0.125), MANY),
        "sample": (partial(ops.sample, logits, params), MANY),
        "image_preprocess": (partial(ops.image_preprocess, *picture), MANY),
        "linear_small": (
            partial(ops.linear_small, few.x, few.weight, residual=few.residual),
            FEW,
        ),
    }


def measure() -> list[dict[str, Any]]:
    """One row an operator; the budget is met if the call with new outputs keeps it too.

    Each is measured in turn with the others, so that no phase of the machine falls on one alone.
    """
    calls = _calls()
    outputs = {name: call() for name, (call, _) in calls.items()}
    new, given = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for _ in range(TURNS):
        for name, (call, _) in calls.items():
            new[name].append(host_us(call))
            if outputs[name] is not None:
                given[name].append(host_us(partial(call, out=outputs[name])))
    return [
        {
            "benchmark": "kernel_host",
            "operator": name,
            "host_us": round(min(new[name]), 2),
            "operator_us": round(min(given[name] or new[name]), 2),
            "budget_us": budget_us,
            "met": min(new[name]) <= budget_us,
        }
        for name, (_, budget_us) in calls.items()
    ]
