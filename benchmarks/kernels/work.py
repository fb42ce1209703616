"""What an operator can't do without: bytes to move and products to compute, for its floor."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from lightvl.testing.attention_reference import PagedInputs, VisionInputs
from lightvl.testing.image_reference import ImageInputs
from lightvl.testing.rotary_reference import RopeInputs


def _rope_bytes(i: RopeInputs) -> int:
    return 2 * (i.q.nbytes + i.k.nbytes + i.v.nbytes)


def _paged_bytes(i: PagedInputs) -> int:
    _, kv_heads, _, dim = i.k_cache.shape
    cell_bytes = 2 * kv_heads * dim * i.k_cache.element_size()
    return 2 * i.q.nbytes + int(i.context_lens.sum()) * cell_bytes


def _paged_flops(i: PagedInputs) -> int:
    pairs = 0
    for context_len, (begin, end) in zip(
        i.context_lens.tolist(), pairwise(i.cu_q_lens.tolist()), strict=True
    ):
        q_len = end - begin
        pairs += q_len * context_len - q_len * (q_len - 1) // 2
    return 4 * i.q.shape[1] * i.q.shape[2] * pairs


def _vision_flops(i: VisionInputs) -> int:
    pairs: int = sum((end - begin) ** 2 for begin, end in pairwise(i.cu_lens.tolist()))
    return 4 * i.q.shape[1] * i.q.shape[2] * pairs


def _image_bytes(i: ImageInputs) -> int:
    tiles = int((i.grids[:, 0] * i.grids[:, 1] + i.grids[:, 2]).sum())
    return sum(x.nbytes for x in i.images) + tiles * 3 * i.tile_size**2 * i.dtype.itemsize


NUM_BYTES: dict[str, Callable[[Any], int]] = {
    "rms_norm": lambda i: 2 * i.x.nbytes,
    "add_rms_norm": lambda i: 4 * i.x.nbytes,
    "layer_norm": lambda i: 2 * i.x.nbytes,
    "scale_add": lambda i: 3 * i.x.nbytes,
    "silu_mul": lambda gate_up: gate_up.nbytes * 3 // 2,
    "gelu": lambda i: 2 * i.x.nbytes,
    "rope_write_kv": _rope_bytes,
    "gather_embeddings": lambda i: 2 * i.ids.numel() * i.table[0].nbytes,
    "sample": lambda i: int(i[0].nbytes),
    "paged_attention": _paged_bytes,
    "vision_attention": lambda i: 4 * i.q.nbytes,
    "image_preprocess": _image_bytes,
}
NUM_FLOPS: dict[str, Callable[[Any], int]] = {
    "paged_attention": _paged_flops,
    "vision_attention": _vision_flops,
}


def num_bytes(operator: str, inputs: Any) -> int:  # noqa: ANN401
    """Bytes that must be read and written once."""
    return NUM_BYTES[operator](inputs)


def num_flops(operator: str, inputs: Any) -> int:  # noqa: ANN401
    """Multiplications and additions of the operator's matrix products."""
    return NUM_FLOPS[operator](inputs) if operator in NUM_FLOPS else 0
