"""Streams safetensors into a model's weights: mapped, cast while copied, dropped when done."""

import mmap
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightvl.config import ModelConfig
from lightvl.errors import StartupError
from lightvl.layers.layer import Layer, Slot
from lightvl.models.names import Take, find_source, is_unused, layout_rules
from lightvl.shards import TensorEntry, damaged

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass
class _Move:
    """One checkpoint tensor and the slots it fills."""

    entry: TensorEntry
    targets: list[tuple[Slot, Take | None]] = field(default_factory=list)

    def check(self) -> None:
        entry = self.entry
        if entry.dtype not in DTYPES:
            raise damaged(
                entry.file, f"{entry.name} is {entry.dtype}, expected {' or '.join(DTYPES)}"
            )
        expected = self._expected_shape()
        if entry.shape != expected:
            shapes = f"{list(entry.shape)}, expected {list(expected)}"
            raise damaged(entry.file, f"{entry.name} is {shapes}")
        size = DTYPES[entry.dtype].itemsize
        for length in entry.shape:
            size *= length
        if entry.num_bytes != size:
            raise damaged(entry.file, f"{entry.name} has {entry.num_bytes} bytes, expected {size}")

    def run(self) -> int:
        """Copies the tensor and returns its size in bytes."""
        with self.entry.file.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        start = self.entry.offset // mmap.PAGESIZE * mmap.PAGESIZE
        length = self.entry.offset + self.entry.num_bytes - start
        data.madvise(mmap.MADV_WILLNEED, start, length)
        tensor = _view(data, self.entry)
        for slot, take in self.targets:
            slot.fill(tensor if take is None else take(tensor))
        return self.entry.num_bytes

    def _expected_shape(self) -> tuple[int, ...]:
        slot, take = self.targets[0]
        if take is None:
            return slot.expected_shape
        rows = sum(slot.expected_shape[0] for slot, _ in self.targets)
        return (rows, *slot.expected_shape[1:])


def load_weights(
    model: Layer,
    config: ModelConfig,
    entries: dict[str, TensorEntry],
    *,
    load_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fills every slot of a model.

    A tensor is mapped, not read: beside the model's own weights no second copy is made.

    Args:
        model: With uninitialised weights.
        config: The checkpoint; decides the names.
        entries: What the checkpoint holds, by published name.
        load_workers: Tensors in work at once.
        progress: Called with bytes done and bytes in all, after each tensor.

    Raises:
        StartupError: A tensor is missing, has the wrong shape or type, or has no place; exit
            code 1.
    """
    moves = _plan(model, config, entries)
    total = sum(move.entry.num_bytes for move in moves)
    done = 0
    with ThreadPoolExecutor(load_workers) as workers:
        for finished in as_completed([workers.submit(move.run) for move in moves]):
            done += finished.result()
            if progress is not None:
                progress(done, total)


def _plan(model: Layer, config: ModelConfig, entries: dict[str, TensorEntry]) -> list[_Move]:
    """Returns what to copy, in the order of the files, after checking all of it."""
    rules = layout_rules(config)
    targets: dict[str, list[tuple[Slot, Take | None]]] = defaultdict(list)
    for path, slot in model.all_slots().items():
        source = find_source(rules, path)
        targets[source.name].append((slot, source.take))
    missing = [name for name in targets if name not in entries]
    if missing:
        raise StartupError(f"the checkpoint lacks {_some(missing)}", exit_code=1)
    unknown = [x for x in entries if x not in targets and not is_unused(config, x)]
    if unknown:
        raise StartupError(
            f"the checkpoint holds {_some(unknown)}, unknown in {config.architecture} "
            f"with {config.text.family}",
            exit_code=1,
        )
    moves = [_Move(entries[name], slots) for name, slots in targets.items()]
    for move in moves:
        move.check()
    return sorted(moves, key=lambda move: (move.entry.file, move.entry.offset))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _view(data: mmap.mmap, entry: TensorEntry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    count = entry.num_bytes // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count, offset=entry.offset).view(entry.shape)
