"""Reads rotary settings in both spellings: `rope_theta` + `rope_scaling`, `rope_parameters`."""

from lightvl.config import RopeConfig, RopeKind
from lightvl.errors import StartupError
from lightvl.utils.fields import Fields

KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
}


def load_rope(text: Fields, max_position: int) -> RopeConfig:
    """Returns a language model's rotary settings.

    Args:
        text: The language model's part of `config.json`.
        max_position: Its `max_position_embeddings`.

    Raises:
        StartupError: A variant that isn't supported, or a parameter it needs is missing.
    """
    rope = text.nested("rope_parameters" if "rope_parameters" in text else "rope_scaling")
    kind: RopeKind = rope.choice("rope_type" if "rope_type" in rope else "type", KINDS, "default")
    for fields in (text, rope):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.bad("partial_rotary_factor", "1.0")
    theta = rope.number("rope_theta", text.number("rope_theta", 10000.0))
    original = max_position
    if kind in ("yarn", "llama3"):
        original = text.integer(
            "original_max_position_embeddings",
            rope.integer("original_max_position_embeddings", max_position),
        )
    if kind == "default":
        return RopeConfig(theta=theta, original_max_position=original)
    if kind == "llama3":
        return RopeConfig(
            kind=kind,
            theta=theta,
            factor=rope.number("factor"),
            original_max_position=original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    if kind == "yarn":
        return _yarn(rope, theta, original, max_position)
    return RopeConfig(
        kind=kind, theta=theta, factor=rope.number("factor"), original_max_position=original
    )


def context_len(rope: RopeConfig, max_position: int) -> int:
    """Returns how many tokens a model can address, its rotary variant's extension included."""
    if rope.kind in ("linear", "dynamic"):
        return round(max_position * rope.factor)
    if rope.kind == "yarn":
        return max(max_position, round(rope.original_max_position * rope.factor))
    return max_position


def _yarn(rope: Fields, theta: float, original: int, max_position: int) -> RopeConfig:
    for key in ("mscale", "mscale_all_dim"):
        if key in rope:
            raise StartupError(f"{rope.where}: {key} is not supported for these models")
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=rope.number("factor", max_position / original),
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor") if "attention_factor" in rope else None,
        truncate=rope.flag("truncate", True),
    )
