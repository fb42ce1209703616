"""Rows of the few-row matrix product: the layers of three models in decode, epilogues included."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared, random, relative_error

BATCHES = (1, 8, 16)
# Name, input and output width, epilogue; the output of a gated product is half as wide.
LAYERS = {
    "8B": (
        ("qkv", 3584, 4608, "bias"),
        ("o", 3584, 3584, "residual"),
        ("gate_up", 3584, 37888, "silu_mul"),
        ("down", 18944, 3584, "residual"),
        ("lm_head", 3584, 151674, "none"),
    ),
    "2B": (
        ("qkv", 1536, 2048, "bias"),
        ("o", 1536, 1536, "residual"),
        ("gate_up", 1536, 17920, "silu_mul"),
        ("down", 8960, 1536, "residual"),
        ("lm_head", 1536, 151674, "none"),
    ),
    "1B": (
        ("qkv", 896, 1152, "bias"),
        ("o", 896, 896, "residual"),
        ("gate_up", 896, 9728, "silu_mul"),
        ("down", 4864, 896, "residual"),
    ),
}
SHARES = {"8B": 0.88, "2B": 0.74}  # 2.75 and 2.3 TB/s of 3.117


@dataclass(frozen=True)
class Linear:
    """x [T, C], weight [F, C]; bias [F] or residual [T, F] where the epilogue takes one."""

    x: Tensor
    weight: Tensor
    epilogue: str
    bias: Tensor | None
    residual: Tensor | None

    def new_output(self) -> Tensor:
        """An output full of NaN."""
        width = self.weight.shape[0] // (2 if self.epilogue == "silu_mul" else 1)
        return self.x.new_full((self.x.shape[0], width), torch.nan)


def make(tokens: int, width: int, out_width: int, epilogue: str) -> Linear:
    """Random operands, weights scaled so that results are about 1."""
    return Linear(
        random(tokens, width),
        random(out_width, width).mul_(width**-0.5),
        epilogue,
        random(out_width) if epilogue == "bias" else None,
        random(tokens, out_width) if epilogue == "residual" else None,
    )


def check(i: Linear) -> Callable[[Tensor], float]:
    """Error against float64."""
    y = i.x.double() @ i.weight.double().t()
    if i.bias is not None:
        y += i.bias
    if i.residual is not None:
        y += i.residual
    if i.epilogue == "silu_mul":
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return lambda out: relative_error(out, y)


def ours(i: Linear) -> Prepared:
    """Our operator."""
    out = i.new_output()
    operator = torch.ops.lightvl.linear_small.default
    gated = i.epilogue == "silu_mul"
    return Prepared(lambda: operator(i.x, i.weight, i.bias, i.residual, gated, out), lambda: out)


def rows() -> Iterator[Row]:
    """All layers."""
    for model, layers in LAYERS.items():
        for layer, width, out_width, epilogue in layers:
            for tokens in BATCHES if model != "1B" else (1, 16):
                num_bytes = 2 * (width * out_width + tokens * (width + out_width))
                yield Row(
                    group="linear",
                    operator="linear_small",
                    shape=f"{model} {layer}, {tokens} row{'s' if tokens > 1 else ''}",
                    target=Target(share_of_floor=SHARES[model]) if model in SHARES else None,
                    num_bytes=num_bytes,
                    num_flops=0,
                    rate="read",
                    set_bytes=num_bytes,
                    make=lambda t=tokens, c=width, f=out_width, e=epilogue: make(t, c, f, e),  # type: ignore[misc]
                    check=check,
                    tolerance=0.004,
                    ours=ours,
                    quick=(model, layer, tokens) == ("2B", "gate_up", 1),
                )
