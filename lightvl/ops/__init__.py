"""The operators as typed functions: each allocates its outputs and calls the compiled library."""

from lightvl.ops.library import check_device, cpu_isa
from lightvl.ops.norm import rms_norm

__all__ = [
    "check_device",
    "cpu_isa",
    "rms_norm",
]
