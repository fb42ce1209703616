"""From a model directory to a model that is ready to run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from lightvl.config import ModelConfig
from lightvl.models.internvl import InternVLModel
from lightvl.models.names import find_source, layout_rules, plain_name
from lightvl.models.weights import load_weights
from lightvl.shards import TensorEntry, read_entries

__all__ = ["InternVLModel", "load_model"]


def load_model(
    config: ModelConfig,
    model_dir: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> InternVLModel:
    """Loads a checkpoint.

    Args:
        config: From `load_model_config`; with `vision` set to None the tower is left out.
        model_dir: Holds the safetensors.
        dtype: The weights are cast to it.
        device: Where they go.
        load_workers: Tensors in work at once.
        progress: Called with bytes done and bytes in all.

    Raises:
        StartupError: Files are missing (exit code 2), or tensors are missing, unknown, misshapen
            or cut off (exit code 1); the message names them.
    """
    entries = {plain_name(name): entry for name, entry in read_entries(model_dir).items()}
    config = _with_own_head(config, entries)
    with _weights_as(dtype, device):
        model = InternVLModel(config)
        load_weights(model, config, entries, load_workers=load_workers, progress=progress)
    return model


def _with_own_head(config: ModelConfig, entries: dict[str, TensorEntry]) -> ModelConfig:
    """A checkpoint that says its head is tied but holds one anyway means the one it holds."""
    head = find_source(layout_rules(config), "text.head.weight").name
    if not config.text.tied_head or head not in entries:
        return config
    return msgspec.structs.replace(
        config, text=msgspec.structs.replace(config.text, tied_head=False)
    )


@contextmanager
def _weights_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
