"""The memory plan: what fits, what is lowered, and how much memory there is."""

from pathlib import Path

import pytest

from lightvl.config import (
    EngineConfig,
    ModelConfig,
    RopeConfig,
    TextConfig,
    TilingConfig,
    VisionConfig,
)
from lightvl.engine.memory import (
    CPU_KV_BYTES,
    embedding_page_bytes,
    kv_page_bytes,
    memory_left_bytes,
    plan_memory,
)
from lightvl.errors import StartupError

GIB = 1 << 30

TEXT = TextConfig(
    family="qwen2",
    hidden_size=256,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    ffn_size=768,
    vocab_size=2048,
    max_position=4096,
    norm_eps=1e-6,
    rope=RopeConfig(),
    qkv_bias=True,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_head=True,
)
VISION = VisionConfig(
    hidden_size=256,
    num_layers=8,
    num_heads=4,
    ffn_size=1024,
    image_size=224,
    patch_size=14,
    norm="layer_norm",
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    checkpoint_image_size=224,
)
TILING = TilingConfig(
    tile_size=224,
    tokens_per_tile=64,
    min_tiles=1,
    max_tiles=12,
    use_thumbnail=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
)


def engine_config(vision: bool = True, **changes: object) -> EngineConfig:
    model = ModelConfig(
        architecture="InternVLChatModel",
        layout="original",
        text=TEXT,
        vision=VISION if vision else None,
        tiling=TILING if vision else None,
        downsample_ratio=0.5,
        template=None,
        data_type="bf16",
        eos_ids=(0,),
        bos_id=None,
        generation={},
    )
    values: dict[str, object] = {
        "model_dir": "",
        "model": model,
        "device": "cpu",
        "data_type": "fp32",
        "mem_fraction": 0.9,
        "page_size": 64,
        "max_total_token_num": None,
        "max_req_total_len": 4096,
        "running_max_req_size": 256,
        "chunked_prefill_size": 256,
        "max_itl_ms": 0.0,
        "batch_max_tokens": 16384,
        "prefix_cache": True,
        "cache_capacity": 200,
        "cache_bytes": None,
        "visual_infer_batch_size": None,
        "load_workers": 2,
        "arena_bytes": GIB,
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


def test_page_sizes_in_bytes() -> None:
    assert kv_page_bytes(TEXT, 64, "fp32") == 2 * 6 * 2 * 64 * 64 * 4
    assert kv_page_bytes(TEXT, 16, "bf16") == 2 * 6 * 2 * 16 * 64 * 2
    assert embedding_page_bytes(engine_config().model, "fp32") == 64 * 256 * 4
    assert embedding_page_bytes(engine_config(vision=False).model, "fp32") == 0


@pytest.mark.parametrize(
    ("available", "kv_bytes"), [(2 * GIB, GIB // 2), (16 * GIB, 4 * GIB), (100 * GIB, 4 * GIB)]
)
def test_kv_takes_a_quarter_of_the_memory_left_up_to_4_gib(available: int, kv_bytes: int) -> None:
    plan = plan_memory(engine_config(), available)
    assert plan.num_kv_pages == kv_bytes // kv_page_bytes(TEXT, 64, "fp32")
    assert plan.max_req_total_len == 4096
    assert not any("lowered" in note for note in plan.notes)


def test_tokens_asked_for_override_the_rule() -> None:
    plan = plan_memory(engine_config(max_total_token_num=1000), 100 * GIB)
    assert plan.num_kv_pages == 16
    assert plan.max_req_total_len == 1024
    lowered = [note for note in plan.notes if "lowered" in note]
    assert lowered == ["max_req_total_len lowered from 4096 to 1024: the KV cache holds no more"]


def test_little_memory_lowers_the_longest_request() -> None:
    plan = plan_memory(engine_config(), 40 << 20)
    assert plan.num_kv_pages * 64 == plan.max_req_total_len < 4096


def test_no_room_for_a_page_is_an_error_of_start() -> None:
    with pytest.raises(StartupError, match="KV page") as error:
        plan_memory(engine_config(), 1 << 20)
    assert error.value.exit_code == 1


def test_arena_holds_the_pictures_asked_for() -> None:
    plan = plan_memory(engine_config(cache_capacity=20), CPU_KV_BYTES * 4)
    assert plan.num_embedding_pages == 20 * 13


def test_arena_is_bounded_by_bytes_but_holds_one_longest_request() -> None:
    page = 64 * 256 * 4
    plan = plan_memory(engine_config(cache_bytes=100 * page), 16 * GIB)
    assert plan.num_embedding_pages == 100
    plan = plan_memory(engine_config(cache_bytes=page), 16 * GIB)
    assert plan.num_embedding_pages == 4096 // 64
    plan = plan_memory(engine_config(cache_bytes=page, cache_capacity=1), 16 * GIB)
    assert plan.num_embedding_pages == 13


def test_no_tower_no_arena() -> None:
    plan = plan_memory(engine_config(vision=False), 16 * GIB)
    assert plan.num_embedding_pages == 0
    assert len(plan.notes) == 1


def machine(tmp_path: Path, cgroup: str) -> tuple[Path, Path]:
    """A made-up /proc with 8 GiB available, and an empty /sys/fs/cgroup."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    return proc, cgroups


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_memory_left_without_a_cgroup_is_the_machines(tmp_path: Path) -> None:
    assert memory_left_bytes(*machine(tmp_path, "0::/\n")) == 8 * GIB


def test_memory_left_in_a_v2_cgroup_counts_parents_and_droppable_cache(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, "0::/a/b\n")
    write(
        cgroups / "a",
        memory__max=3 * GIB,
        memory__current=2 * GIB,
        memory__stat=f"inactive_file {GIB}",
    )
    write(
        cgroups / "a" / "b", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0"
    )
    assert memory_left_bytes(proc, cgroups) == 2 * GIB


def test_memory_left_in_a_v1_cgroup_seen_from_inside(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, "4:cpu,memory:/outside/name\n1:cpu:/x\n")
    write(
        cgroups / "memory",
        memory__limit_in_bytes=4 * GIB,
        memory__usage_in_bytes=3 * GIB,
        memory__stat=f"cache 7\ntotal_inactive_file {GIB // 2}",
    )
    assert memory_left_bytes(proc, cgroups) == GIB + GIB // 2
