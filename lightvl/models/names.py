"""Which checkpoint tensor fills which slot of `InternVLModel`, for both layouts.

A rule maps a slot's path to a tensor's name; some tensors hold several slots stacked, then the
rule also says how to take the slot's part out.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightvl.config import ModelConfig, TextConfig

Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor, and the part of it that one slot takes (None: all)."""

    name: str
    take: Take | None = None


@dataclass(frozen=True)
class Rule:
    """Slots that match `slot` come from the tensor `name`, an expansion of the match."""

    slot: str
    name: str
    take: Callable[[str], Take] | None = None
    """Made from the slot's group `part`."""


def find_source(rules: list[Rule], slot: str) -> Source:
    """Returns where the slot's contents come from; the first rule that matches counts."""
    for rule in rules:
        if match := re.fullmatch(rule.slot, slot):
            take = rule.take(match["part"]) if rule.take else None
            return Source(match.expand(rule.name), take)
    raise KeyError(slot)


def layout_rules(config: ModelConfig) -> list[Rule]:
    """Returns the rules of a checkpoint's layout."""
    if config.layout == "native":
        return NATIVE_VISION + TEXT
    if config.text.family == "internlm2":
        return ORIGINAL_VISION + internlm2_rules(config.text)
    return ORIGINAL_VISION + TEXT


def is_unused(config: ModelConfig, name: str) -> bool:
    """Whether a checkpoint tensor may be there without a slot that it fills."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if config.vision is None:
        return name.startswith(("vision_", "mlp1.", "multi_modal_projector."))
    layer = re.match(r"vision_(?:model|tower)\.encoder\.layers?\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= config.vision.num_layers


def plain_name(name: str) -> str:
    """Returns a tensor's name as published, whichever way transformers wrote it."""
    for written, published in NATIVE_ALIASES.items():
        if name.startswith(written):
            return published + name.removeprefix(written)
    return name


NATIVE_ALIASES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


def _third(part: str) -> Take:
    return lambda x: x.chunk(3)["qkv".index(part)]


_LAYER = r"vision\.layers\.(?P<i>\d+)\."
_ORIGINAL_LAYER = r"vision_model.encoder.layers.\g<i>."
_NATIVE_LAYER = r"vision_tower.encoder.layer.\g<i>."

ORIGINAL_VISION = [
    Rule(
        r"vision\.embedding\.(weight|bias)",
        r"vision_model.embeddings.patch_embedding.\1",
    ),
    Rule(r"vision\.embedding\.class_token", "vision_model.embeddings.class_embedding"),
    Rule(r"vision\.embedding\.positions", "vision_model.embeddings.position_embedding"),
    Rule(
        _LAYER + r"attention\.qkv\.(?P<part>[qkv])\.(?P<kind>\w+)",
        _ORIGINAL_LAYER + r"attn.qkv.\g<kind>",
        _third,
    ),
    Rule(_LAYER + r"attention\.(?P<rest>.+)", _ORIGINAL_LAYER + r"attn.\g<rest>"),
    Rule(_LAYER + r"scale(?P<n>\d)", _ORIGINAL_LAYER + r"ls\g<n>"),
    Rule(_LAYER + r"(?P<rest>.+)", _ORIGINAL_LAYER + r"\g<rest>"),
    Rule(r"projector\.norm\.(\w+)", r"mlp1.0.\1"),
    Rule(r"projector\.fc1\.(\w+)", r"mlp1.1.\1"),
    Rule(r"projector\.fc2\.(\w+)", r"mlp1.3.\1"),
]

NATIVE_VISION = [
    Rule(
        r"vision\.embedding\.(weight|bias)",
        r"vision_tower.embeddings.patch_embeddings.projection.\1",
    ),
    Rule(r"vision\.embedding\.class_token", "vision_tower.embeddings.cls_token"),
    Rule(r"vision\.embedding\.positions", "vision_tower.embeddings.position_embeddings"),
    Rule(
        _LAYER + r"attention\.qkv\.(?P<part>[qkv])\.(?P<kind>\w+)",
        _NATIVE_LAYER + r"attention.\g<part>_proj.\g<kind>",
    ),
    Rule(
        _LAYER + r"attention\.proj\.(?P<kind>\w+)",
        _NATIVE_LAYER + r"attention.projection_layer.\g<kind>",
    ),
    Rule(_LAYER + r"norm1\.(?P<kind>\w+)", _NATIVE_LAYER + r"layernorm_before.\g<kind>"),
    Rule(_LAYER + r"norm2\.(?P<kind>\w+)", _NATIVE_LAYER + r"layernorm_after.\g<kind>"),
    Rule(_LAYER + r"scale(?P<n>\d)", _NATIVE_LAYER + r"lambda_\g<n>"),
    Rule(_LAYER + r"(?P<rest>.+)", _NATIVE_LAYER + r"\g<rest>"),
    Rule(r"projector\.norm\.(\w+)", r"multi_modal_projector.layer_norm.\1"),
    Rule(r"projector\.fc([12])\.(\w+)", r"multi_modal_projector.linear_\1.\2"),
]

_BLOCK = r"text\.layers\.(?P<i>\d+)\."
_TEXT_BLOCK = r"language_model.model.layers.\g<i>."

TEXT = [
    Rule(r"text\.embedding\.weight", "language_model.model.embed_tokens.weight"),
    Rule(r"text\.norm\.weight", "language_model.model.norm.weight"),
    Rule(r"text\.head\.weight", "language_model.lm_head.weight"),
    Rule(_BLOCK + r"attention_norm\.weight", _TEXT_BLOCK + "input_layernorm.weight"),
    Rule(_BLOCK + r"mlp_norm\.weight", _TEXT_BLOCK + "post_attention_layernorm.weight"),
    Rule(
        _BLOCK + r"attention\.qkv\.(?P<part>\w)\.(?P<kind>\w+)",
        _TEXT_BLOCK + r"self_attn.\g<part>_proj.\g<kind>",
    ),
    Rule(_BLOCK + r"attention\.out\.(?P<kind>\w+)", _TEXT_BLOCK + r"self_attn.o_proj.\g<kind>"),
    Rule(_BLOCK + r"attention\.(?P<rest>[qk]_norm\.weight)", _TEXT_BLOCK + r"self_attn.\g<rest>"),
    Rule(
        _BLOCK + r"mlp\.gate_up\.(?P<part>\w+)\.(?P<kind>\w+)",
        _TEXT_BLOCK + r"mlp.\g<part>_proj.\g<kind>",
    ),
    Rule(_BLOCK + r"mlp\.down\.(?P<kind>\w+)", _TEXT_BLOCK + r"mlp.down_proj.\g<kind>"),
]


def internlm2_rules(config: TextConfig) -> list[Rule]:
    """Returns internlm2's own names; `wqkv` holds a KV head's queries, key and value in turn."""
    group = config.num_heads // config.num_kv_heads

    def from_wqkv(part: str) -> Take:
        rows = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, None)}

        def take(x: Tensor) -> Tensor:
            heads = x.view(config.num_kv_heads, group + 2, config.head_dim, *x.shape[1:])
            return heads[:, rows[part]].flatten(0, 2)

        return take

    return [
        Rule(r"text\.embedding\.weight", "language_model.model.tok_embeddings.weight"),
        Rule(r"text\.norm\.weight", "language_model.model.norm.weight"),
        Rule(r"text\.head\.weight", "language_model.output.weight"),
        Rule(_BLOCK + r"attention_norm\.weight", _TEXT_BLOCK + "attention_norm.weight"),
        Rule(_BLOCK + r"mlp_norm\.weight", _TEXT_BLOCK + "ffn_norm.weight"),
        Rule(
            _BLOCK + r"attention\.qkv\.(?P<part>\w)\.(?P<kind>\w+)",
            _TEXT_BLOCK + r"attention.wqkv.\g<kind>",
            from_wqkv,
        ),
        Rule(_BLOCK + r"attention\.out\.(?P<kind>\w+)", _TEXT_BLOCK + r"attention.wo.\g<kind>"),
        Rule(_BLOCK + r"mlp\.gate_up\.gate\.weight", _TEXT_BLOCK + "feed_forward.w1.weight"),
        Rule(_BLOCK + r"mlp\.gate_up\.up\.weight", _TEXT_BLOCK + "feed_forward.w3.weight"),
        Rule(_BLOCK + r"mlp\.down\.weight", _TEXT_BLOCK + "feed_forward.w2.weight"),
    ]
