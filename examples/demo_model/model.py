"""The demo model as a plain torch module whose weights carry the original layout's names.

The maths is that of transformers' `InternVLForConditionalGeneration` (checked by
`check_against_transformers.py`); query, key and value are one product, and only the positions
that a loss needs go through the language head, which makes a training step markedly faster.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the model; C hidden width, H query heads, K key/value heads, D head width."""

    tile_size: int = 224
    patch_size: int = 14
    hidden_size: int = 256
    vision_layers: int = 8
    vision_heads: int = 4
    vision_mlp: int = 1024
    text_layers: int = 6
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 768
    vocab_size: int = 2048
    rope_theta: float = 10000.0
    max_len: int = 4096
    eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.tile_size // self.patch_size) ** 2

    @property
    def tokens_per_tile(self) -> int:
        return self.num_patches // 4

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class VisionEmbeddings(nn.Module):
    """Patches, a class token before them, learned positions."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches + 1, width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.patch_embedding.kernel_size[0]
        n, channels, height, width = pixels.shape
        patches = pixels.reshape(n, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * size * size)
        # A convolution whose stride is its kernel is one matrix product, and faster as such.
        weight = self.patch_embedding.weight.flatten(1)
        patches = F.linear(patches, weight, self.patch_embedding.bias)
        cls = self.class_embedding.expand(len(pixels), 1, -1).to(patches.dtype)
        return (torch.cat([cls, patches], dim=1) + self.position_embedding).to(patches.dtype)


class VisionAttention(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.num_heads = config.vision_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, length, width))


class VisionMlp(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.vision_mlp)
        self.fc2 = nn.Linear(config.vision_mlp, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """Pre-norm block with LayerScale."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.attn = VisionAttention(config)
        self.mlp = VisionMlp(config)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), 0.5))
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + (self.ls1 * self.attn(self.norm1(x))).to(x.dtype)
        return x + (self.ls2 * self.mlp(self.norm2(x))).to(x.dtype)


class VisionEncoder(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.vision_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionModel(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.embeddings(pixels))


def pixel_shuffle(x: Tensor) -> Tensor:
    """[n, h, w, C] to [n, h/2, w/2, 4C], channel order of the published `ps_version` v2."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on [n, H, T, D]; `cos` and `sin` are [T, D/2] or [n, 1, T, D/2]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class TextAttention(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.num_kv_heads = config.text_heads, config.text_kv_heads
        self.head_dim = width // config.text_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: "LayerCache | None") -> Tensor:
        n, length, width = x.shape
        q = self.q_proj(x).view(n, length, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(n, length, self.num_kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(n, length, self.num_kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            out = cache.attend(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(n, length, width))


class LayerCache:
    """Keys and values of one layer during generation; rows may have different lengths.

    Args:
        lengths: Tokens of each prompt, [n]; the padding behind a prompt is never attended to.
        room: Most tokens that will be generated.
    """

    def __init__(self, lengths: Tensor, room: int) -> None:
        self.lengths, self.room = lengths, room
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.num_new = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The whole padded prompt the first time, then one token a row."""
        if self.keys is None or self.values is None:
            self.prompt_len = k.shape[2]
            self.keys = F.pad(k, (0, 0, 0, self.room))
            self.values = F.pad(v, (0, 0, 0, self.room))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        end = self.prompt_len + self.num_new
        self.keys[:, :, end], self.values[:, :, end] = k[:, :, 0], v[:, :, 0]
        self.num_new += 1
        slot = torch.arange(end + 1, device=q.device)
        seen = (slot < self.lengths[:, None]) | (slot >= self.prompt_len)
        return F.scaled_dot_product_attention(
            q,
            self.keys[:, :, : end + 1],
            self.values[:, :, : end + 1],
            attn_mask=seen[:, None, None],
            enable_gqa=True,
        )


class TextMlp(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.text_mlp, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.text_mlp, bias=False)
        self.down_proj = nn.Linear(config.text_mlp, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextLayer(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.eps)
        self.self_attn = TextAttention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.eps)
        self.mlp = TextMlp(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Qwen2 without its head: embeddings in, normalised hidden states out."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.norm = RmsNorm(config.hidden_size, config.eps)
        half = config.hidden_size // config.text_heads // 2
        rate = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.arange(config.max_len, dtype=torch.float32)[:, None] * rate
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(
        self, x: Tensor, positions: Tensor | None = None, caches: list[LayerCache] | None = None
    ) -> Tensor:
        if positions is None:
            cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, caches[index] if caches else None)
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.model = TextModel(config)


class DemoModel(nn.Module):
    """Vision tower, projector, language model; the head is the embedding table."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.vision_model = VisionModel(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = LanguageModel(config)
        self.apply(init_weights)

    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] to picture tokens [N, tokens_per_tile, C]."""
        x = self.vision_model(pixels)[:, 1:]
        side = self.config.tile_size // self.config.patch_size
        x = pixel_shuffle(x.reshape(len(x), side, side, -1))
        return self.mlp1(x.flatten(1, 2))

    def embed(self, ids: Tensor, pixels: Tensor | None, image_id: int) -> Tensor:
        """Text rows with picture rows in their places, in order: [n, T, C].

        Args:
            ids: [n, T]; every row has the same number of `image_id`.
            pixels: Normalised tiles of all rows, [N, 3, S, S], or None.
            image_id: The id that stands for a row of a picture.
        """
        x = self.language_model.model.embed_tokens(ids)
        if pixels is None:
            return x
        features = self.encode_tiles(pixels).reshape(len(ids), -1, x.shape[-1])
        order = (ids != image_id).int().argsort(dim=1, stable=True)
        places = order[:, : features.shape[1], None].expand_as(features)
        return x.to(features.dtype).scatter(1, places, features)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] to logits [..., V]."""
        return F.linear(hidden, self.language_model.model.embed_tokens.weight)


def init_weights(module: nn.Module) -> None:
    """Normal weights scaled by the number of inputs, small embeddings, zero biases."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
