"""The operators as typed functions: each allocates its outputs and calls the compiled library."""

from lightvl.ops.attention import paged_attention, vision_attention
from lightvl.ops.library import check_device, cpu_isa
from lightvl.ops.norm import rms_norm

__all__ = [
    "check_device",
    "cpu_isa",
    "paged_attention",
    "rms_norm",
    "vision_attention",
]
