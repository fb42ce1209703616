"""The operators as typed functions, which call the compiled library.

Each returns new tensors, or writes to those that it is given as `out` and returns them: a tensor, a
tuple or a `SampleResult`, whatever it would return. On a GPU torch takes about as long to make a
tensor as an operator takes to check its arguments and launch: where calls aren't captured in a
graph, that is what `out` saves.

Tensors are read as they lie in memory: `torch._neg_view(x)`, which torch negates when it is used,
needs `resolve_neg()` first.
"""

from lightvl.ops.activation import gelu, silu_mul
from lightvl.ops.attention import paged_attention, vision_attention
from lightvl.ops.embedding import gather_embeddings
from lightvl.ops.image import image_preprocess
from lightvl.ops.library import check_device, cpu_isa
from lightvl.ops.linear import linear_small, prefers_linear_small
from lightvl.ops.norm import add_rms_norm, layer_norm, rms_norm, scale_add
from lightvl.ops.rotary import rope_write_kv
from lightvl.ops.sampling import SampleParams, SampleResult, sample

__all__ = [
    "SampleParams",
    "SampleResult",
    "add_rms_norm",
    "check_device",
    "cpu_isa",
    "gather_embeddings",
    "gelu",
    "image_preprocess",
    "layer_norm",
    "linear_small",
    "paged_attention",
    "prefers_linear_small",
    "rms_norm",
    "rope_write_kv",
    "sample",
    "scale_add",
    "silu_mul",
    "vision_attention",
]
