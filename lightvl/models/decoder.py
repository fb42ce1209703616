"""The language models: qwen2, qwen3, llama and internlm2 differ in biases and QK-norm alone."""

from torch import Tensor

from lightvl.config import TextConfig
from lightvl.layers.attention import PagedAttention
from lightvl.layers.context import ForwardContext
from lightvl.layers.embedding import TokenEmbedding
from lightvl.layers.layer import Layer
from lightvl.layers.linear import Linear
from lightvl.layers.mlp import GatedMLP
from lightvl.layers.norm import RMSNorm


class DecoderLayer(Layer):
    """Pre-norm attention and feed-forward; the norms also add the residual before them."""

    def __init__(self, config: TextConfig) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = PagedAttention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.ffn_size, bias=config.mlp_bias)


class Decoder(Layer):
    """A dense decoder-only language model."""

    def __init__(self, config: TextConfig) -> None:
        self.embedding = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_layers)]
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = (
            None if config.tied_head else Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def forward(self, residual: Tensor, ctx: ForwardContext) -> Tensor:
        """Runs all layers.

        Args:
            residual: [T, C] embeddings; overwritten.
            ctx: The step.

        Returns:
            [T, C] after the final norm.
        """
        norms = [layer.attention_norm for layer in self.layers] + [self.norm]
        x = norms[0](residual)
        for i, layer in enumerate(self.layers):
            x = layer.mlp_norm.add(layer.attention(x, ctx, i), residual)
            x = norms[i + 1].add(layer.mlp(x), residual)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns [S, V] for hidden [S, C]."""
        return self.embedding.logits(hidden) if self.head is None else self.head(hidden)
