"""InternViT, 300M-like (LayerNorm) and 6B-like (RMSNorm, QK-norm), and the projector behind it."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear

from lightvl import ops
from lightvl.config import VisionConfig
from lightvl.layers.attention import VisionAttention
from lightvl.layers.layer import Layer, Slot, new_weight
from lightvl.layers.linear import Linear
from lightvl.layers.mlp import GeluMLP
from lightvl.layers.norm import LayerNorm, RMSNorm

PROJECTOR_NORM_EPS = 1e-5


class PatchEmbedding(Layer):
    """Patches to hidden states: the patch convolution as one product, class token, positions."""

    def __init__(self, config: VisionConfig) -> None:
        self.side = config.image_size // config.patch_size
        self.checkpoint_side = config.checkpoint_image_size // config.patch_size
        self.patch_size = config.patch_size
        self.weight = new_weight(config.hidden_size, 3 * config.patch_size**2)
        self.bias = new_weight(config.hidden_size)
        self.class_token = new_weight(config.hidden_size)
        self.positions = new_weight(1 + self.side**2, config.hidden_size)

    def slots(self) -> dict[str, Slot]:
        """Returns the convolution's, the class token's and the positions' slots."""
        width = len(self.bias)
        conv_shape = (width, 3, self.patch_size, self.patch_size)
        positions_shape = (1, 1 + self.checkpoint_side**2, width)
        return {
            "weight": Slot(self.weight, conv_shape, lambda x: x.flatten(1)),
            "bias": Slot(self.bias),
            "class_token": Slot(self.class_token, (1, 1, width), torch.flatten),
            "positions": Slot(self.positions, positions_shape, self._fit_positions),
        }

    def __call__(self, patches: Tensor) -> Tensor:
        """Returns [B, 1 + Q, C] for patches [B, Q, 3 * p * p]."""
        width = len(self.bias)
        out = patches.new_empty(patches.shape[0], len(self.positions), width)
        out[:, 0] = self.class_token + self.positions[0]
        torch.add(linear(patches, self.weight, self.bias), self.positions[1:], out=out[:, 1:])
        return out

    def _fit_positions(self, stored: Tensor) -> Tensor:
        """Interpolates the stored grid, bicubic in float32, when the tile's grid is another."""
        positions = stored[0]
        if self.side == self.checkpoint_side:
            return positions
        side = self.checkpoint_side
        grid = positions[1:].float().view(side, side, -1).permute(2, 0, 1)
        resized = interpolate(grid[None], (self.side, self.side), mode="bicubic")[0]
        return torch.cat((positions[:1].float(), resized.flatten(1).t()))


class VisionLayer(Layer):
    """Pre-norm attention and feed-forward, each scaled per channel before it is added."""

    def __init__(self, config: VisionConfig) -> None:
        norm = LayerNorm if config.norm == "layer_norm" else RMSNorm
        self.norm1 = norm(config.hidden_size, config.norm_eps)
        self.attention = VisionAttention(config)
        self.scale1 = new_weight(config.hidden_size)
        self.norm2 = norm(config.hidden_size, config.norm_eps)
        self.mlp = GeluMLP(config.hidden_size, config.ffn_size)
        self.scale2 = new_weight(config.hidden_size)

    def slots(self) -> dict[str, Slot]:
        """Returns the two scales."""
        return {"scale1": Slot(self.scale1), "scale2": Slot(self.scale2)}

    def __call__(self, x: Tensor, cu_lens: Tensor, max_len: int) -> Tensor:
        """Returns [T, C] for x [T, C] in segments of `cu_lens`."""
        out = self.attention(self.norm1(x), cu_lens, max_len)
        x = ops.scale_add(out, self.scale1, x, self.attention.proj.bias)
        return ops.scale_add(self.mlp(self.norm2(x)), self.scale2, x, self.mlp.fc2.bias)


class VisionTower(Layer):
    """An InternViT without its head."""

    def __init__(self, config: VisionConfig) -> None:
        self.embedding = PatchEmbedding(config)
        self.layers = [VisionLayer(config) for _ in range(config.num_layers)]

    def forward(self, patches: Tensor) -> Tensor:
        """Encodes tiles.

        Args:
            patches: [B, Q, 3 * p * p], channel-major within a patch, normalised.

        Returns:
            [B, Q, C], the class token dropped.
        """
        x = self.embedding(patches)
        num_tiles, num_tokens, width = x.shape
        cu_lens = torch.arange(num_tiles + 1, dtype=torch.int32, device=x.device) * num_tokens
        x = x.flatten(0, 1)
        for layer in self.layers:
            x = layer(x, cu_lens, num_tokens)
        return x.view(num_tiles, num_tokens, width)[:, 1:]


class Projector(Layer):
    """Merges neighbouring patches (pixel shuffle v2) and projects them to the text's width."""

    def __init__(self, vision_size: int, text_size: int, factor: int) -> None:
        self.factor = factor
        self.norm = LayerNorm(vision_size * factor**2, PROJECTOR_NORM_EPS)
        self.fc1 = Linear(vision_size * factor**2, text_size, bias=True)
        self.fc2 = Linear(text_size, text_size, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [B, Q / factor^2, C of the text] for features [B, Q, C]."""
        shuffled = pixel_shuffle(features, self.factor)
        x = self.fc1.product(self.norm(shuffled.flatten(0, 1)))
        return self.fc2(ops.gelu(x, self.fc1.bias)).view(*shuffled.shape[:2], -1)


def pixel_shuffle(features: Tensor, factor: int) -> Tensor:
    """Puts each `factor` x `factor` block of patches into one row (`ps_version: v2`).

    Args:
        features: [B, Q, C], a square of patches in row-major order.
        factor: Side of a block.

    Returns:
        [B, Q / factor^2, C * factor^2]; within a row: block row, block column, channel.
    """
    num_tiles, num_patches, width = features.shape
    side = round(num_patches**0.5) // factor
    blocks = features.reshape(num_tiles, side, factor, side, factor, width)
    return blocks.transpose(2, 3).reshape(num_tiles, side**2, factor**2 * width)
