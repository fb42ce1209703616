"""Rotary embedding fused with the write of keys and values to their pages."""

from torch import Tensor

from lightvl.ops.library import out_operator

_rope_write_kv = out_operator("rope_write_kv")


def rope_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    rows: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Rotate queries in place; rotate keys and write them, and the values, to their page slots.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; heads
    are rotated as two halves. The arithmetic is float32.

    Args:
        q: [T, H, D], row-strided, rotated in place. D is even and at most 256.
        k: [T, K, D], row-strided, left as it is.
        v: [T, K, D], row-strided.
        cos_sin: float32 [R, D]: the cosines of D/2 frequencies, then their sines.
        rows: int32 [T], each token's row of cos_sin.
        slots: int64 [T], page * P + offset in the caches, or -1 for a token that is not written.
        k_cache: [N, K, P, D], contiguous.
        v_cache: [N, K, P, D], contiguous.
        q_norm: [D], weight of an RMS norm applied to each query head before the rotation.
        k_norm: [D], the same for each key head.
        eps: Added to the mean square in those norms.

    Raises:
        ValueError: shapes or dtypes do not fit or, checked on the CPU alone, a row or slot is not
            there.
    """
    _rope_write_kv(q, k, v, cos_sin, rows, slots, k_cache, v_cache, q_norm, k_norm, eps)
