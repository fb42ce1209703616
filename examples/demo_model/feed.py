"""Renders pictures in worker processes and keeps a pool of them on the training device.

Workers write chunks of samples of one kind (number of tiles) into anonymous shared memory; a
thread copies each chunk into that kind's ring of samples on the device. A step draws at random
from a ring, so rendering and training need not keep the same pace: a picture is seen again, with
another conversation and other light, until a new one takes its place.
"""

import mmap
import multiprocessing as mp
import os
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from assets import load_assets
from canvas import TILE, cut_tiles
from conversation import TOKENS_PER_TILE, Writer, pick_turns
from mixture import KINDS, TEXT_ONLY, render
from scenes import Scene
from tokenizers import Tokenizer
from torch import Tensor

TEXT_ROOM = 88
VARIANTS = 2
CHUNK = 32
MAX_TILES_A_SAMPLE = 5
TILE_BYTES = TILE * TILE * 3
POOL_SAMPLES = {1: 98_304, 2: 4096, 3: 8192, 4: 2048, 5: 10_240, TEXT_ONLY: 4096}


def row_len(kind: int) -> int:
    """Ids of a padded sample with `kind` tiles."""
    return TOKENS_PER_TILE * kind + TEXT_ROOM


class Slots:
    """Chunk-sized places in memory shared with the workers (fork)."""

    def __init__(self, number: int) -> None:
        tiles = CHUNK * MAX_TILES_A_SAMPLE * TILE_BYTES
        longest = CHUNK * VARIANTS * row_len(MAX_TILES_A_SAMPLE)
        self.tiles = [np.frombuffer(mmap.mmap(-1, tiles), np.uint8) for _ in range(number)]
        self.ids = [np.frombuffer(mmap.mmap(-1, 2 * longest), np.int16) for _ in range(number)]
        self.marks = [np.frombuffer(mmap.mmap(-1, longest), bool) for _ in range(number)]

    def pin(self) -> None:
        """Lets the device read the slots directly; only after the workers have been forked."""
        for array in (*self.tiles, *self.ids, *self.marks):
            torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)

    def views(self, slot: int, kind: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tiles [CHUNK, kind, S, S, 3], ids and marks [CHUNK, VARIANTS, row_len]."""
        shape = (CHUNK, VARIANTS, row_len(kind))
        text = CHUNK * VARIANTS * row_len(kind)
        tiles = self.tiles[slot][: CHUNK * kind * TILE_BYTES]
        return (
            tiles.reshape(CHUNK, kind, TILE, TILE, 3),
            self.ids[slot][:text].reshape(shape),
            self.marks[slot][:text].reshape(shape),
        )


def fill_chunk(
    kind: int, views: tuple[np.ndarray, np.ndarray, np.ndarray], context: "Context", rng: Random
) -> None:
    """Renders the samples of one chunk in place."""
    tiles, ids, marks = views
    ids[:], marks[:] = context.pad_id, False
    for row in range(CHUNK):
        scene = render_any(kind, context, rng)
        cut = [cut_tiles(image) for image in scene.images]
        if kind:
            tiles[row] = np.concatenate(cut)
        for variant in range(VARIANTS):
            turns = pick_turns(scene, rng)
            counts = [len(c) for c in cut]
            encoded = context.writer.training(turns, counts, row_len(kind), rng)
            ids[row, variant, : len(encoded.ids)] = encoded.ids
            marks[row, variant, : len(encoded.ids)] = encoded.is_answer


def render_any(kind: int, context: "Context", rng: Random) -> Scene:
    """A scene; where one can't be rendered, another, and a word about it."""
    while True:
        try:
            return render(context.assets, kind, rng, context.shares)
        except (ValueError, OSError, IndexError, ZeroDivisionError, MemoryError) as error:
            traceback.print_exception(error)


class Context:
    """What every worker needs; made once, before the workers are forked."""

    def __init__(self, data: Path, tokenizer: Tokenizer, shares: dict[str, float]) -> None:
        self.shares = shares
        self.assets = load_assets(data)
        self.writer = Writer(tokenizer)
        self.pad_id = tokenizer.token_to_id("<|endoftext|>")


def work(
    context: Context,
    slots: Slots,
    free: "mp.SimpleQueue[int]",
    ready: "mp.SimpleQueue[tuple[int, int]]",
    seed: int,
) -> None:
    """Renders chunks for ever, out of the way of the training process."""
    os.nice(10)
    rng = Random(seed)
    while True:
        slot = free.get()
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        fill_chunk(kind, slots.views(slot, kind), context, rng)
        ready.put((slot, kind))


@dataclass
class Ring:
    """Samples of one kind on the device, the oldest overwritten first."""

    tiles: Tensor
    ids: Tensor
    marks: Tensor
    num_written: int = 0

    @property
    def filled(self) -> int:
        return min(self.num_written, len(self.ids))

    def write(self, views: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        start = self.num_written % len(self.ids)
        for target, source in zip((self.tiles, self.ids, self.marks), views, strict=True):
            target[start : start + CHUNK].copy_(torch.from_numpy(source), non_blocking=True)
        if self.ids.is_cuda:
            torch.cuda.current_stream().synchronize()
        self.num_written += CHUNK


def make_ring(kind: int, samples: int, device: str) -> Ring:
    """An empty ring on the device."""
    text = (samples, VARIANTS, row_len(kind))
    return Ring(
        torch.zeros((samples, kind, TILE, TILE, 3), dtype=torch.uint8, device=device),
        torch.zeros(text, dtype=torch.int16, device=device),
        torch.zeros(text, dtype=torch.bool, device=device),
    )


@dataclass(frozen=True)
class Batch:
    """`tiles` uint8 [n, kind, S, S, 3]; `ids`, `marks` [n, T]."""

    tiles: Tensor
    ids: Tensor
    marks: Tensor


class Feed:
    """Worker processes, the thread that takes their chunks, and the rings."""

    def __init__(
        self, context: Context, num_workers: int, device: str, pool_share: float, seed: int
    ) -> None:
        fork = mp.get_context("fork")
        self.slots = Slots(3 * num_workers)
        self.free, self.ready = fork.SimpleQueue(), fork.SimpleQueue()
        for slot in range(3 * num_workers):
            self.free.put(slot)
        self.workers = [
            fork.Process(
                target=work,
                args=(context, self.slots, self.free, self.ready, seed * 1000 + number),
                daemon=True,
            )
            for number in range(num_workers)
        ]
        for worker in self.workers:
            worker.start()
        self.device, self.pool_share = device, pool_share
        self.num_rendered = self.num_drawn = 0
        self.rings: dict[int, Ring] = {}
        self.lock = threading.Lock()
        """Held to keep the workers waiting, as soon as all slots are full."""

    def open(self) -> None:
        """Takes device memory and begins to fill it; call after everything has been forked."""
        for kind, samples in POOL_SAMPLES.items():
            number = max(CHUNK, int(samples * self.pool_share) // CHUNK * CHUNK)
            self.rings[kind] = make_ring(kind, number, self.device)
        if self.device == "cuda":
            self.slots.pin()
        threading.Thread(target=self.take, daemon=True).start()

    def take(self) -> None:
        if self.device == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream())
        at_first = sum(len(ring.ids) for ring in self.rings.values())
        while True:
            while self.ready_to_draw() and self.num_rendered > at_first + self.num_drawn:
                time.sleep(0.05)
            slot, kind = self.ready.get()
            with self.lock:
                self.rings[kind].write(self.slots.views(slot, kind))
            self.num_rendered += CHUNK
            self.free.put(slot)

    def ready_to_draw(self) -> bool:
        """Whether there is a first chunk of every kind."""
        return all(ring.filled for ring in self.rings.values())

    def draw(self, kind: int, size: int) -> Batch:
        """Samples drawn at random from a ring, each with one of its conversations."""
        ring = self.rings[kind]
        self.num_drawn += size
        rows = torch.randint(ring.filled, (size,), device=self.device)
        variant = torch.randint(VARIANTS, (size,), device=self.device)
        return Batch(ring.tiles[rows], ring.ids[rows, variant].long(), ring.marks[rows, variant])

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()
