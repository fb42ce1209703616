"""Finds a checkpoint's safetensors and what lies where in them; reads headers alone, no torch.

Format: https://github.com/huggingface/safetensors (8 bytes of length, JSON header, tensor data).
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from lightvl.errors import StartupError

MAX_HEADER_BYTES = 100_000_000


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor on disk.

    Attributes:
        file: The shard that holds it.
        dtype: As safetensors spells it, such as `BF16`.
        offset: Bytes from the file's start to its data.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def find_shards(model_dir: Path) -> list[Path]:
    """Returns a checkpoint's safetensors files: those of the index, else those that lie there.

    Raises:
        StartupError: There are none, or one that the index names is missing; exit code 2.
    """
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if not (model_dir / name).is_file():
                raise StartupError(f"{model_dir}: {name} is missing, which {index.name} names")
        return [model_dir / name for name in names]
    single = model_dir / "model.safetensors"
    shards = [single] if single.is_file() else sorted(model_dir.glob("*.safetensors"))
    if not shards:
        others = sorted(x.name for x in (*model_dir.glob("*.bin"), *model_dir.glob("*.gguf")))
        found = f" ({', '.join(others[:3])} can't be read)" if others else ""
        raise StartupError(f"{model_dir}: no *.safetensors{found}")
    return shards


def read_entries(model_dir: Path) -> dict[str, TensorEntry]:
    """Returns every tensor of a checkpoint by name.

    Raises:
        StartupError: A file is missing (exit code 2) or damaged (exit code 1).
    """
    entries: dict[str, TensorEntry] = {}
    for file in find_shards(model_dir):
        entries |= {entry.name: entry for entry in _read_header(file)}
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        for name, file_name in _weight_map(index).items():
            if name not in entries:
                raise damaged(model_dir / file_name, f"{name} is missing, which the index names")
    return entries


def damaged(file: Path, what: str) -> StartupError:
    """Returns the error for weights that can't be used."""
    return StartupError(f"{file}: {what}", exit_code=1)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name): Path(file).name for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{index} can't be read: expected an object with weight_map") from error


def _read_header(file: Path) -> list[TensorEntry]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            data_start = 8 + int.from_bytes(stream.read(8), "little")
            header = stream.read(min(data_start - 8, MAX_HEADER_BYTES))
    except OSError as error:
        raise StartupError(f"{file} can't be read: {error.strerror}") from error
    if size < 8 or len(header) != data_start - 8:
        raise damaged(file, "the safetensors header is cut off")
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        entries = [_entry(file, data_start, *item) for item in tensors.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, "the safetensors header can't be read") from error
    for entry in entries:
        if entry.offset < data_start or entry.offset + entry.num_bytes > size:
            raise damaged(file, f"the data of {entry.name} is cut off")
    return entries


def _entry(file: Path, data_start: int, name: str, fields: dict[str, Any]) -> TensorEntry:
    begin, end = fields["data_offsets"]
    shape = tuple(int(x) for x in fields["shape"])
    return TensorEntry(name, file, str(fields["dtype"]), shape, data_start + begin, end - begin)
