"""Attention over paged KV for language models, and within tiles for vision towers."""

from torch import Tensor

from lightvl import ops
from lightvl.config import TextConfig, VisionConfig
from lightvl.layers.context import ForwardContext
from lightvl.layers.layer import Layer
from lightvl.layers.linear import Linear, MergedLinear
from lightvl.layers.norm import RMSNorm


class PagedAttention(Layer):
    """Causal attention of a language model with rotary embedding and grouped KV heads."""

    def __init__(self, config: TextConfig) -> None:
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        self.heads = [num_heads, num_kv_heads, num_kv_heads]
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.norm_eps = config.norm_eps
        widths = (size * config.head_dim for size in self.heads)
        parts = dict(zip("qkv", widths, strict=True))
        self.qkv = MergedLinear(config.hidden_size, parts, bias=config.qkv_bias)
        self.out = Linear(parts["q"], config.hidden_size, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def __call__(self, x: Tensor, ctx: ForwardContext, layer: int) -> Tensor:
        """Writes the tokens' keys and values to the cache of `layer`, then attends to it.

        Args:
            x: [T, C].
            ctx: The step.
            layer: Index into `ctx.kv_caches`.

        Returns:
            [T, C].
        """
        k_cache, v_cache = ctx.kv_caches[layer]
        q, k, v = self.qkv(x).view(x.shape[0], -1, self.head_dim).split_with_sizes(self.heads, 1)
        ops.rope_write_kv(
            q,
            k,
            v,
            ctx.cos_sin,
            ctx.rope_rows,
            ctx.slots,
            k_cache,
            v_cache,
            self.q_norm.weight if self.q_norm else None,
            self.k_norm.weight if self.k_norm else None,
            self.norm_eps,
        )
        out = ops.paged_attention(
            q,
            k_cache,
            v_cache,
            ctx.page_table,
            ctx.cu_q_lens,
            ctx.context_lens,
            self.scale,
            ctx.max_q_len,
        )
        return self.out(out.flatten(1))


class VisionAttention(Layer):
    """Full attention within a tile; `qk_norm` spans the whole width, not a head.

    The output projection's bias is left to the caller, who adds it in the next operator.
    """

    def __init__(self, config: VisionConfig) -> None:
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.scale = (width // config.num_heads) ** -0.5
        self.qkv = MergedLinear(width, dict.fromkeys("qkv", width), bias=config.qkv_bias)
        self.proj = Linear(width, width, bias=True)
        self.q_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None

    def __call__(self, x: Tensor, cu_lens: Tensor, max_len: int) -> Tensor:
        """Attends within each segment.

        Args:
            x: [T, C].
            cu_lens: int32 [S + 1]; where each segment begins.
            max_len: Tokens of the longest one.

        Returns:
            [T, C], without the projection's bias.
        """
        q, k, v = self.qkv(x).chunk(3, 1)
        if self.q_norm and self.k_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        shape = (x.shape[0], self.num_heads, -1)
        out = ops.vision_attention(
            q.view(shape), k.view(shape), v.view(shape), cu_lens, max_len, self.scale
        )
        return self.proj.product(out.flatten(1))
