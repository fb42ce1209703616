"""Reading safetensors into models: layouts on disk, and every way weights can be bad."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightvl.config import DataType
from lightvl.errors import StartupError
from lightvl.model_config import load_model_config
from lightvl.models.internvl import InternVLModel
from lightvl.models.registry import load_model
from lightvl.shards import read_entries
from lightvl.testing.checkpoints import TORCH_TYPES, write_checkpoint, write_weights
from tests.models.oracle import reference_logits
from tests.models.paged_loop import prompt_logits
from tests.models.test_internvl import TOLERANCE, load, picture_prompt

CPU = torch.device("cpu")
BLOCK = "language_model.model.layers.1."


def weights(model: InternVLModel) -> dict[str, Tensor]:
    return {name: slot.weight for name, slot in model.all_slots().items()}


def assert_same(model: InternVLModel, other: InternVLModel) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites a single-file checkpoint's tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def edit_config(path: Path, *keys: str, value: object) -> None:
    config = json.loads((path / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (path / "config.json").write_text(json.dumps(config))


def refusal(path: Path) -> StartupError:
    with pytest.raises(StartupError) as error:
        load(path)
    return error.value


@pytest.mark.parametrize("num_workers", [1, 5])
def test_shards_equal_a_single_file(tmp_path: Path, num_workers: int) -> None:
    single = write_checkpoint(tmp_path / "single")
    shards = write_checkpoint(tmp_path / "shards", num_shards=4)
    assert len(list(shards.glob("*.safetensors"))) == 4
    seen: list[tuple[int, int]] = []
    model = load_model(
        load_model_config(shards),
        shards,
        dtype=torch.float32,
        device=CPU,
        load_workers=num_workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert_same(model, load(single))
    num_bytes = sum(x.nbytes for x in load_file(single / "model.safetensors").values())
    assert seen == sorted(seen)
    assert seen[-1] == (num_bytes, num_bytes)


@pytest.mark.parametrize("stored", ["bf16", "fp16", "fp32"])
def test_weights_are_cast(tmp_path: Path, stored: DataType) -> None:
    path = write_checkpoint(tmp_path, dtype=stored)
    config = load_model_config(path)
    assert config.data_type == stored
    name = f"{BLOCK}mlp.down_proj.weight"
    original = load_file(path / "model.safetensors")[name]
    assert original.dtype == TORCH_TYPES[stored]
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(config, path, dtype=dtype, device=CPU, load_workers=2)
        assert torch.equal(model.text.layers[1].mlp.down.weight, original.to(dtype))
        assert {x.dtype for x in weights(model).values()} == {dtype}
        assert model.rotary.table.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_names_that_transformers_uses_in_memory(tmp_path: Path) -> None:
    published = write_checkpoint(tmp_path / "published", layout="native")
    written = write_checkpoint(tmp_path / "written", layout="native")

    def rename(name: str) -> str:
        if name == "language_model.lm_head.weight":
            return "lm_head.weight"
        return "model." + name.replace("language_model.model.", "language_model.")

    tensors = load_file(written / "model.safetensors")
    write_weights(written, {rename(name): tensor for name, tensor in tensors.items()})
    assert_same(load(written), load(published))


def test_a_head_in_the_file_wins_over_tied(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tied=False)
    edit_config(path, "llm_config", "tie_word_embeddings", value=True)
    model = load(path)
    assert model.text.head is not None
    head = load_file(path / "model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(model.text.head.weight, head.float())


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path, tied=True))
    assert model.text.head is None


def test_towers_last_layers_are_left_out(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ours")
    native = write_checkpoint(tmp_path / "native", layout="native")
    edit_config(path, "select_layer", value=-2)
    edit_config(native, "vision_feature_layer", value=-2)
    models = [load(path), load(native)]
    prompt = picture_prompt(2)
    expected = reference_logits(native, prompt)
    for model in models:
        assert model.vision is not None
        assert len(model.vision.layers) == 2
        error = (prompt_logits(model, prompt) - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE


def test_positions_are_interpolated_to_the_tile(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ours", tile_size=84)
    native = write_checkpoint(tmp_path / "native", tile_size=84, layout="native")
    edit_config(path, "force_image_size", value=56)
    prompt = picture_prompt(2)
    expected = reference_logits(native, prompt)
    error = (prompt_logits(load(path), prompt) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE


def test_without_its_tower(tmp_path: Path) -> None:
    for layout in ("original", "native"):
        path = write_checkpoint(tmp_path / layout, layout=layout)
        config = msgspec.structs.replace(load_model_config(path), vision=None, tiling=None)
        model = load_model(config, path, dtype=torch.float32, device=CPU, load_workers=1)
        assert all(name.startswith("text.") for name in weights(model))


def test_missing_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    edit(path, lambda tensors: tensors.pop(f"{BLOCK}self_attn.k_proj.bias"))
    error = refusal(path)
    assert f"{BLOCK}self_attn.k_proj.bias" in str(error)
    assert error.exit_code == 1


def test_missing_head_of_an_untied_model(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tied=True)
    edit_config(path, "llm_config", "tie_word_embeddings", value=False)
    assert "language_model.lm_head.weight" in str(refusal(path))


def test_unknown_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    name = f"{BLOCK}self_attn.o_proj.bias"
    edit(path, lambda tensors: tensors.update({name: torch.zeros(64)}))
    error = refusal(path)
    assert name in str(error)
    assert error.exit_code == 1


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    name = f"{BLOCK}self_attn.rotary_emb.inv_freq"
    edit(path, lambda tensors: tensors.update({name: torch.zeros(8)}))
    load(path)


@pytest.mark.parametrize(
    ("family", "name", "shape", "expected"),
    [
        ("qwen2", f"{BLOCK}mlp.up_proj.weight", (64, 160), (160, 64)),
        ("qwen2", "vision_model.encoder.layers.0.attn.qkv.weight", (191, 64), (192, 64)),
        ("qwen2", "vision_model.embeddings.patch_embedding.weight", (64, 588), (64, 3, 14, 14)),
        ("qwen2", "vision_model.embeddings.position_embedding", (1, 16, 64), (1, 17, 64)),
        ("internlm2", f"{BLOCK}attention.wqkv.weight", (64, 64), (128, 64)),
    ],
)
def test_wrong_shape(
    tmp_path: Path, family: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    path = write_checkpoint(tmp_path, family="internlm2" if family == "internlm2" else "qwen2")
    edit(path, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    error = refusal(path)
    assert f"{name} is {list(shape)}, expected {list(expected)}" in str(error)
    assert error.exit_code == 1


def test_wrong_type(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    name = f"{BLOCK}mlp.up_proj.weight"
    edit(path, lambda tensors: tensors.update({name: torch.zeros(160, 64, dtype=torch.int8)}))
    error = refusal(path)
    assert f"{name} is I8" in str(error)
    assert error.exit_code == 1


def test_cut_off_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    file = path / "model.safetensors"
    last = max(read_entries(path).values(), key=lambda entry: entry.offset)
    data = file.read_bytes()
    for length, message in [
        (len(data) - 1, f"the data of {last.name} is cut off"),
        (100, "the safetensors header is cut off"),
        (3, "the safetensors header is cut off"),
    ]:
        file.write_bytes(data[:length])
        error = refusal(path)
        assert str(error) == f"{file}: {message}"
        assert error.exit_code == 1


def test_garbage_in_the_header(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    file = path / "model.safetensors"
    for header in (b"\x00" * 64, b'{"x": 1}', b'{"x": {"dtype": "F32", "shape": "y"}}', b"[]"):
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        error = refusal(path)
        assert "header" in str(error)
        assert error.exit_code == 1


def test_size_that_belies_the_shape(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = f"{BLOCK}mlp.up_proj.weight"
    header[name]["data_offsets"][1] -= 2
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    error = refusal(path)
    assert name in str(error)
    assert error.exit_code == 1


def test_missing_shard(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, num_shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    error = refusal(path)
    assert "model-00002-of-00003.safetensors" in str(error)
    assert error.exit_code == 2


def test_unreadable_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, num_shards=2)
    shard = path / "model-00002-of-00002.safetensors"
    shard.unlink()
    (path / "model.safetensors.index.json").unlink()
    shard.symlink_to(path / "nowhere")
    error = refusal(path)
    assert f"{shard} can't be read" in str(error)
    assert error.exit_code == 2


def test_index_that_names_an_absent_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, num_shards=2)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["language_model.ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    error = refusal(path)
    assert "language_model.ghost" in str(error)
    assert error.exit_code == 1
