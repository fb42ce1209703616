"""Rotary position embedding and its variants, in float32.

Sources: RoPE (arXiv:2104.09864), YaRN (arXiv:2309.00071), Llama 3's frequency-dependent scaling
(arXiv:2407.21783); dynamic NTK as `transformers` computes it, whose results are the reference.
"""

import math

import torch
from torch import Tensor

from lightvl.config import RopeConfig


class RotaryEmbedding:
    """Cosines and sines by position.

    Args:
        config: The variant and its parameters.
        head_dim: D.
        num_positions: Positions to make the table for.
    """

    def __init__(self, config: RopeConfig, head_dim: int, num_positions: int) -> None:
        self.config = config
        self.head_dim = head_dim
        self.exponents = _exponents(head_dim)
        self.inv_freq = inverse_frequencies(config, head_dim)
        self.scale = attention_factor(config)
        self.table = self._table(num_positions)

    def reserve(self, num_positions: int) -> None:
        """Lengthens the table if it is shorter than `num_positions`."""
        if num_positions > self.table.shape[0]:
            self.table = self._table(num_positions)

    def rows(self, positions: Tensor, effective_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Looks up tokens' rotations.

        Args:
            positions: int32 [T].
            effective_lens: int32 [T]; the greater of the prompt's length and the position + 1.
                Dynamic NTK picks its base by it; the other variants don't look at it.

        Returns:
            float32 [R, D], cosines in the first half and sines in the second, and int32 [T], each
            token's row of it.
        """
        if self.config.kind != "dynamic" or not self._extended(effective_lens):
            return self.table, positions
        angles = positions.float().unsqueeze(1) * self._dynamic_frequencies(effective_lens)
        rows = torch.arange(len(positions), dtype=torch.int32, device=positions.device)
        return self._cos_sin(angles), rows

    def _extended(self, effective_lens: Tensor) -> bool:
        return int(effective_lens.max()) > self.config.original_max_position

    def _dynamic_frequencies(self, effective_lens: Tensor) -> Tensor:
        factor, original = self.config.factor, self.config.original_max_position
        lens = effective_lens.clamp(min=original)
        growth = factor * lens / original - (factor - 1)
        base = self.config.theta * growth ** (self.head_dim / (self.head_dim - 2))
        return 1.0 / base.unsqueeze(1) ** self.exponents

    def _table(self, num_positions: int) -> Tensor:
        positions = torch.arange(num_positions, device=self.inv_freq.device).float()
        return self._cos_sin(positions.unsqueeze(1) * self.inv_freq)

    def _cos_sin(self, angles: Tensor) -> Tensor:
        return torch.cat((angles.cos(), angles.sin()), 1) * self.scale


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Returns float32 [D/2]; for dynamic NTK those within the original context."""
    inv_freq = 1.0 / config.theta ** _exponents(head_dim)
    if config.kind == "linear":
        return inv_freq / config.factor
    if config.kind == "llama3":
        return _llama3(config, inv_freq)
    if config.kind == "yarn":
        return _yarn(config, inv_freq, head_dim)
    return inv_freq


def attention_factor(config: RopeConfig) -> float:
    """Returns YaRN's factor on cosines and sines, 1 for the other variants."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    return 0.1 * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2).float() / head_dim


def _llama3(config: RopeConfig, inv_freq: Tensor) -> Tensor:
    turns = config.original_max_position * inv_freq / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * inv_freq / config.factor + smooth * inv_freq


def _yarn(config: RopeConfig, inv_freq: Tensor, head_dim: int) -> Tensor:
    low = _yarn_dim(config, head_dim, config.beta_fast)
    high = _yarn_dim(config, head_dim, config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return inv_freq / config.factor * interpolated + inv_freq * (1 - interpolated)


def _yarn_dim(config: RopeConfig, head_dim: int, num_turns: float) -> float:
    """Returns the dimension that makes so many turns within the original context."""
    wavelength = config.original_max_position / (num_turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(config.theta))
