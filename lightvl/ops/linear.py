"""The matrix product of few rows on a GPU; bfloat16 or float16, summed in float32."""

from torch import Tensor

from lightvl.ops.library import out_operator

MAX_ROWS = 16

_linear_small = out_operator("linear_small")


def prefers_linear_small(num_tokens: int, width: int) -> bool:
    """Whether linear_small is the choice on a GPU for a product of `num_tokens` rows.

    Measured on an H100 against cuBLAS and a kernel for the epilogue, for the decode shapes of the
    8B, 2B and 1B language models (docs/kernels.md).
    """
    return 0 < num_tokens <= MAX_ROWS and width % 8 == 0


def linear_small(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Return x @ weight.T + bias, gated or with a residual added, rounded once.

    A row's result is the same bits whatever other rows there are. The weight is read while the
    stream's preceding kernel may still run, so that kernel must not be what writes the weight.

    Args:
        x: [T, C], at most 16 rows; C is a multiple of 8, rows begin at multiples of 16 bytes.
        weight: [F, C] as torch's Linear has it, or [2F, C] with `silu_mul`: gate, then up; rows
            begin as x's.
        bias: A value per row of weight, contiguous.
        residual: [T, F], added to the result; may be `out`.
        silu_mul: Return silu(gate) * up for the halves of the product.
        out: [T, F] to write to; a new tensor when absent.

    Returns:
        [T, F], `out` where it was given.

    Raises:
        ValueError: shapes, dtypes or strides do not fit, or the tensors are not on a GPU.
    """
    if out is None:
        num_rows = weight.shape[0]
        out = x.new_empty(x.shape[0], num_rows // 2 if silu_mul else num_rows)
    _linear_small(x, weight, bias, residual, silu_mul, out)
    return out
