"""Feed-forward layers."""

from torch import Tensor

from lightvl import ops
from lightvl.layers.layer import Layer
from lightvl.layers.linear import Linear, MergedLinear


class GatedMLP(Layer):
    """`down(silu(gate(x)) * up(x))`, the language models' feed-forward layer."""

    def __init__(self, hidden_size: int, ffn_size: int, *, bias: bool) -> None:
        parts = {"gate": ffn_size, "up": ffn_size}
        self.gate_up = MergedLinear(hidden_size, parts, bias=bias)
        self.down = Linear(ffn_size, hidden_size, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, C] for x [T, C]."""
        return self.down(ops.silu_mul(self.gate_up(x)))


class GeluMLP(Layer):
    """`fc2(gelu(fc1(x)))`, the vision towers' feed-forward layer.

    The last bias is left to the caller, who adds it in the next operator.
    """

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        self.fc1 = Linear(hidden_size, ffn_size, bias=True)
        self.fc2 = Linear(ffn_size, hidden_size, bias=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, C] for x [T, C], without fc2's bias."""
        return self.fc2.product(ops.gelu(self.fc1.product(x), self.fc1.bias))
