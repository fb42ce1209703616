"""From flags, environment and checkpoint to the engine's configuration: one pure function."""

from pathlib import Path

from lightvl.config import DataType, EngineConfig, ModelConfig
from lightvl.errors import StartupError
from lightvl.flags import ServerConfig
from lightvl.utils.env import Environment

CPU_CHUNK = 256


def engine_config(
    config: ServerConfig, model: ModelConfig, environment: Environment
) -> tuple[EngineConfig, list[str]]:
    """Resolves what the engine is told.

    Returns:
        The configuration and one line per choice that the user should see.

    Raises:
        StartupError: A flag asks for what the checkpoint or this build can't do.
    """
    notes = [_device_note(config)]
    if config.enable_multimodal and model.vision is None:
        raise StartupError("--enable_multimodal: this checkpoint has no vision tower")
    chunk = config.chunked_prefill_size or CPU_CHUNK
    notes += _tile_length_notes(model, environment)
    context = model.text.max_position
    wanted_len = config.max_req_total_len or context
    if wanted_len > context:
        notes.append(f"max_req_total_len lowered to the model's context, {context}")
    return EngineConfig(
        model_dir=str(Path(config.model_dir).resolve()),
        model=model,
        device="cpu",
        data_type=_data_type(config),
        mem_fraction=config.mem_fraction,
        page_size=config.page_size,
        max_total_token_num=config.max_total_token_num,
        max_req_total_len=min(wanted_len, context),
        running_max_req_size=config.running_max_req_size,
        chunked_prefill_size=None if config.disable_chunked_prefill else chunk,
        max_itl_ms=config.max_itl_ms if config.max_itl_ms is not None else 0.0,
        batch_max_tokens=config.batch_max_tokens or max(16384, chunk),
        prefix_cache=not config.disable_dynamic_prompt_cache,
        cache_capacity=config.cache_capacity,
        cache_bytes=config.cache_bytes_host,
        visual_infer_batch_size=config.visual_infer_batch_size,
        load_workers=environment.load_workers,
        arena_bytes=config.media_shm_bytes,
    ), notes


def _device_note(config: ServerConfig) -> str:
    if config.device == "cuda":
        raise StartupError("--device cuda: not in this build yet, expected cpu or auto")
    why = "as asked" if config.device == "cpu" else "this build serves on the CPU only"
    return f"device: cpu ({why})"


def _data_type(config: ServerConfig) -> DataType:
    asked = config.data_type or "fp32"
    if asked != "fp32":
        raise StartupError(f"--data_type {asked}: on the CPU expected fp32")
    return "fp32"


def _tile_length_notes(model: ModelConfig, environment: Environment) -> list[str]:
    asked = environment.internvl_image_length
    if asked is None or model.tiling is None or asked == model.tiling.tokens_per_tile:
        return []
    return [
        f"INTERNVL_IMAGE_LENGTH={asked} is ignored: "
        f"this checkpoint has {model.tiling.tokens_per_tile} tokens per tile"
    ]
