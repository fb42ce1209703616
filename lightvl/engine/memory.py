"""How many KV pages and embedding pages there are: computed before serving, never probed."""

from dataclasses import dataclass
from pathlib import Path

from lightvl.config import DataType, EngineConfig, ModelConfig, TextConfig
from lightvl.errors import StartupError

ITEM_BYTES: dict[DataType, int] = {"bf16": 2, "fp16": 2, "fp32": 4}

CPU_KV_BYTES = 4 << 30
CPU_EMBEDDING_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the runner allocates and the scheduler hands out.

    Attributes:
        num_kv_pages: Pages of the KV cache, `page_size` tokens each.
        num_embedding_pages: Pages of the embedding arena, one tile each; 0 without a tower.
        max_req_total_len: Longest prompt plus output of one request, perhaps lowered to fit.
        notes: One line per choice, for the log.
    """

    num_kv_pages: int
    num_embedding_pages: int
    max_req_total_len: int
    notes: tuple[str, ...]


def plan_memory(config: EngineConfig, available_bytes: int | None = None) -> MemoryPlan:
    """Plans the KV cache and the embedding arena of a CPU engine whose weights are loaded.

    The KV cache takes the smaller of 4 GiB and a quarter of the memory left, or exactly
    `max_total_token_num` tokens. The arena holds `cache_capacity` pictures of the most tiles,
    within `cache_bytes` (1 GiB when unset), and always the pictures of one longest request. The
    kernel hands out both page by page as they are first written.

    Args:
        config: The engine's configuration.
        available_bytes: Memory left; None asks the machine and its cgroup.

    Raises:
        StartupError: There is not room for a single KV page.
    """
    available = memory_left_bytes() if available_bytes is None else available_bytes
    num_kv_pages = _num_kv_pages(config, available)
    num_tokens = num_kv_pages * config.page_size
    kv_bytes = num_kv_pages * kv_page_bytes(config.model.text, config.page_size, config.data_type)
    notes = [f"KV cache: {num_tokens} tokens, {_mebibytes(kv_bytes)}"]
    max_req_total_len = min(config.max_req_total_len, num_tokens)
    if max_req_total_len < config.max_req_total_len:
        notes.append(
            f"max_req_total_len lowered from {config.max_req_total_len} to {max_req_total_len}: "
            "the KV cache holds no more"
        )
    num_embedding_pages = _num_embedding_pages(config, max_req_total_len)
    if num_embedding_pages:
        arena_bytes = num_embedding_pages * embedding_page_bytes(config.model, config.data_type)
        notes.append(f"embedding cache: {num_embedding_pages} tiles, {_mebibytes(arena_bytes)}")
    return MemoryPlan(num_kv_pages, num_embedding_pages, max_req_total_len, tuple(notes))


def kv_page_bytes(text: TextConfig, page_size: int, data_type: DataType) -> int:
    """Returns the bytes of one KV page over all layers, keys and values."""
    numbers_per_token = 2 * text.num_layers * text.num_kv_heads * text.head_dim
    return numbers_per_token * page_size * ITEM_BYTES[data_type]


def embedding_page_bytes(model: ModelConfig, data_type: DataType) -> int:
    """Returns the bytes of one tile's embeddings; 0 without a vision tower."""
    if model.tiling is None:
        return 0
    return model.tiling.tokens_per_tile * model.text.hidden_size * ITEM_BYTES[data_type]


def _num_kv_pages(config: EngineConfig, available_bytes: int) -> int:
    if config.max_total_token_num is not None:
        return -(-config.max_total_token_num // config.page_size)
    page_bytes = kv_page_bytes(config.model.text, config.page_size, config.data_type)
    num_pages = min(CPU_KV_BYTES, available_bytes // 4) // page_bytes
    if num_pages < 1:
        raise StartupError(
            f"a quarter of the memory left, {_mebibytes(available_bytes // 4)}, "
            f"is less than one KV page of {_mebibytes(page_bytes)}",
            exit_code=1,
        )
    return num_pages


def _num_embedding_pages(config: EngineConfig, max_req_total_len: int) -> int:
    tiling = config.model.tiling
    if config.model.vision is None or tiling is None:
        return 0
    tiles_per_picture = tiling.max_tiles + int(tiling.use_thumbnail and tiling.max_tiles > 1)
    wanted = config.cache_capacity * tiles_per_picture
    bound_bytes = CPU_EMBEDDING_BYTES if config.cache_bytes is None else config.cache_bytes
    affordable = bound_bytes // embedding_page_bytes(config.model, config.data_type)
    one_request = -(-max_req_total_len // tiling.tokens_per_tile)
    return max(min(wanted, affordable), min(one_request, wanted), tiles_per_picture)


def memory_left_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns what this process may still allocate: the machine's or the cgroup's, the smaller.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. Page cache
    that the kernel can drop counts as free in both.
    """
    left = _meminfo_bytes((proc / "meminfo").read_text(), "MemAvailable")
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files, root = ("memory.max", "memory.current", "inactive_file"), cgroups
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = cgroups / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            left = min(left, _group_left_bytes(group, files, otherwise=left))
            if group == root:
                break
    return max(left, 0)


def _group_left_bytes(group: Path, files: tuple[str, str, str], otherwise: int) -> int:
    limit_file, usage_file, droppable_key = files
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        stat = (group / "memory.stat").read_text()
    except OSError:
        return otherwise
    if limit == "max":
        return otherwise
    droppable = dict(line.split() for line in stat.splitlines()).get(droppable_key, "0")
    return int(limit) - usage + int(droppable)


def _meminfo_bytes(meminfo: str, key: str) -> int:
    line = next(line for line in meminfo.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.0f} MiB"
