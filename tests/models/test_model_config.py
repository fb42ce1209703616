"""Reading checkpoints' JSON files: what is understood, and what is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightvl.config import ModelConfig
from lightvl.errors import StartupError
from lightvl.model_config import load_model_config
from lightvl.testing.checkpoints import IMAGENET_MEAN, write_checkpoint
from tests.models.test_loading import edit_config

# As published: InternVL-Chat-V1-5, InternVL3-1B and InternVL3_5-8B, shortened to what counts.
CHAT_V1_5 = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "max_position_embeddings": 32768,
        "model_type": "internlm2",
        "num_attention_heads": 48,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 3.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 92553,
    },
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internlm2-chat",
    "torch_dtype": "bfloat16",
    "use_thumbnail": True,
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 3200,
        "image_size": 448,
        "intermediate_size": 12800,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "rms_norm",
        "num_attention_heads": 25,
        "num_channels": 3,
        "num_hidden_layers": 45,
        "patch_size": 14,
        "qk_normalization": True,
        "qkv_bias": False,
    },
}


def write_json(path: Path, name: str, value: Any) -> None:
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))


def refusal(path: Path) -> str:
    with pytest.raises(StartupError) as error:
        load_model_config(path)
    assert error.value.exit_code == 2
    return str(error.value)


def load_published(path: Path, config: dict[str, Any]) -> ModelConfig:
    write_json(path, "config.json", config)
    (path / "model.safetensors").touch()
    return load_model_config(path)


def test_published_chat_model_with_the_large_tower(tmp_path: Path) -> None:
    model = load_published(tmp_path, CHAT_V1_5)
    text, vision, tiling = model.text, model.vision, model.tiling
    assert (text.family, text.head_dim, text.num_kv_heads) == ("internlm2", 128, 8)
    assert (text.rope.kind, text.rope.factor, text.rope.original_max_position) == (
        "dynamic",
        3.0,
        32768,
    )
    assert not any((text.qkv_bias, text.out_bias, text.qk_norm, text.tied_head))
    assert vision is not None
    assert (vision.num_layers, vision.norm, vision.qk_norm, vision.qkv_bias) == (
        45,
        "rms_norm",
        True,
        False,
    )
    assert tiling is not None
    assert (tiling.tokens_per_tile, tiling.min_tiles, tiling.max_tiles) == (256, 1, 12)
    assert tiling.use_thumbnail
    assert (model.template, model.eos_ids, model.bos_id) == ("internlm2-chat", (2,), 1)


def test_published_qwen3_model_in_transformers_layout(tmp_path: Path) -> None:
    text = {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "eos_token_id": 151645,
        "vocab_size": 151936,
    }
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": text,
        "vision_config": {
            "attention_bias": True,
            "hidden_size": 1024,
            "image_size": [448, 448],
            "intermediate_size": 4096,
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": [14, 14],
        },
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    processor = {"min_patches": 1, "max_patches": 9, "size": {"height": 448, "width": 448}}
    write_json(tmp_path, "preprocessor_config.json", processor)
    write_json(tmp_path, "generation_config.json", {"eos_token_id": [151645, 151643], "top_k": 20})
    model = load_published(tmp_path, config)
    assert (model.text.head_dim, model.text.qk_norm, model.text.qkv_bias) == (128, True, False)
    assert model.text.rope.theta == 1e6
    assert model.vision is not None
    assert (model.vision.image_size, model.vision.qkv_bias) == (448, True)
    assert model.tiling is not None
    assert (model.tiling.max_tiles, model.tiling.mean) == (9, tuple(IMAGENET_MEAN))
    assert model.eos_ids == (151645, 151643)
    assert model.generation == {"top_k": 20}


def test_layouts_differ_only_in_layout(tmp_path: Path) -> None:
    original = load_model_config(write_checkpoint(tmp_path / "original", vision="6b"))
    native = load_model_config(write_checkpoint(tmp_path / "native", vision="6b", layout="native"))
    for name in ("text", "vision", "tiling", "downsample_ratio", "eos_ids", "data_type"):
        assert getattr(original, name) == getattr(native, name), name
    assert (original.layout, native.layout) == ("original", "native")


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json"])
def test_both_places_of_the_image_processor(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, layout="native")
    (path / "processor_config.json").unlink()
    processor: dict[str, Any] = {"max_patches": 5, "image_std": [0.5, 0.5, 0.25]}
    nested = {"image_processor": processor, "processor_class": "InternVLProcessor"}
    write_json(path, name, nested if name == "processor_config.json" else processor)
    tiling = load_model_config(path).tiling
    assert tiling is not None
    assert (tiling.max_tiles, tiling.std) == (5, (0.5, 0.5, 0.25))


@pytest.mark.parametrize(
    ("generation", "eos_ids"),
    [
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [7, 9]}, (7, 9)),
        ({"eos_token_id": None}, (0, 2)),
        ({}, (0, 2)),
    ],
)
def test_end_ids(tmp_path: Path, generation: dict[str, Any], eos_ids: tuple[int, ...]) -> None:
    path = write_checkpoint(tmp_path)
    write_json(path, "generation_config.json", generation)
    assert load_model_config(path).eos_ids == eos_ids


def test_sampling_defaults(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    defaults = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    others = {"transformers_version": "4.51.0", "pad_token_id": 3, "min_p": None}
    write_json(path, "generation_config.json", {**defaults, **others})
    assert load_model_config(path).generation == defaults
    write_json(path, "generation_config.json", {"temperature": "hot"})
    assert "temperature is 'hot'" in refusal(path)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (["model_type"], "llava", "model_type 'llava'"),
        (["model_type"], None, "model_type 'None'"),
        (["llm_config", "model_type"], "phi3", "'phi3'"),
        (["llm_config", "model_type"], "qwen3_moe", "'qwen3_moe'"),
        (["llm_config", "model_type"], "gpt_oss", "'gpt_oss'"),
        (["quantization_config"], {"quant_method": "awq"}, "awq"),
        (["llm_config", "quantization_config"], {"quant_method": "gptq"}, "gptq"),
    ],
)
def test_unsupported_families_are_named(
    tmp_path: Path, keys: list[str], value: object, named: str
) -> None:
    path = write_checkpoint(tmp_path)
    edit_config(path, *keys, value=value)
    (path / "model.safetensors").write_bytes(b"not read")
    message = refusal(path)
    assert named in message
    assert "supported: InternVL 1.5 to 3.5" in message
    for family in ("qwen2", "qwen3", "llama", "internlm2"):
        assert family in message


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["ps_version"], "v1"),
        (["llm_config", "hidden_act"], "gelu"),
        (["llm_config", "use_sliding_window"], True),
        (["llm_config", "hidden_size"], 0),
        (["llm_config", "num_key_value_heads"], 3),
        (["llm_config", "vocab_size"], "many"),
        (["llm_config", "rms_norm_eps"], -1),
        (["vision_config", "num_attention_heads"], 7),
        (["vision_config", "norm_type"], "batch_norm"),
        (["vision_config", "image_size"], [448, 224]),
        (["downsample_ratio"], "half"),
        (["torch_dtype"], "float8_e4m3fn"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, keys: list[str], value: object) -> None:
    path = write_checkpoint(tmp_path)
    edit_config(path, *keys, value=value)
    message = refusal(path)
    assert f"{keys[-1]} is {value!r}, expected" in message
    assert "config.json" in message


def test_unsupported_rotary_variant(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, rope_scaling={"rope_type": "longrope", "factor": 2.0})
    assert "rope_type is 'longrope', expected default or linear" in refusal(path)


def test_internlm2_exists_in_the_original_layout_alone(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, layout="native")
    edit_config(path, "text_config", "model_type", value="internlm2")
    assert "internlm2 in transformers' layout is not supported" in refusal(path)


def test_directory_without_configuration(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "can't be read as JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "expected a JSON object" in refusal(tmp_path)


def test_directory_without_safetensors(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    message = refusal(path)
    assert "no *.safetensors" in message
    assert "pytorch_model.bin" in message


def test_missing_fields(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    edit_config(path, "llm_config", "hidden_size", value=None)
    assert "config.json: llm_config: hidden_size is missing" in refusal(path)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lightvl.model_config import load_model_config;"
        "load_model_config(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
