"""An engine with its real runner in this thread, driven by messages; and what to ask it.

Nothing runs by itself: `Driver.step` executes one step, pixels are supplied when asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightvl.config import EngineConfig, ModelConfig, TilingConfig
from lightvl.engine.engine import Engine
from lightvl.engine.memory import plan_memory
from lightvl.engine.runner import Runner
from lightvl.grid import num_image_tokens, tile_grid
from lightvl.messages import (
    Abort,
    AddRequest,
    FlushCaches,
    NeedPixels,
    Pixels,
    PixelsDone,
    Started,
    StepOutputs,
    TokenOutput,
)
from lightvl.model_config import load_model_config
from lightvl.models.internvl import InternVLModel
from lightvl.models.registry import load_model
from lightvl.types import ImageSlot, SamplingParams
from tests.models.oracle import load_reference

IMG_START, IMG_END, IMG_CONTEXT = 3, 4, 5
ARENA_BYTES = 1 << 22

Pixel = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """RGB noise with structure, so that tiles differ; [height, width, 3]."""

    key: bytes
    pixels: Pixel


@cache
def picture(seed: int, width: int = 120, height: int = 100) -> Picture:
    """Returns picture number `seed`."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return Picture(f"{seed}:{width}x{height}".encode().ljust(32), np.asarray(resized))


def words(num_tokens: int, seed: int = 0) -> list[int]:
    """Returns ids of ordinary tokens."""
    ids: list[int] = np.random.default_rng(seed).integers(12, 400, num_tokens).tolist()
    return ids


Prompt = Sequence[int | Picture]
"""Ids, with pictures where they stand."""


def picture_prompt(*pictures: Picture, seed: int = 0) -> list[int | Picture]:
    """Returns words with the pictures between them."""
    prompt: list[int | Picture] = [*words(5, seed)]
    for i, shown in enumerate(pictures):
        prompt += [IMG_START, shown, IMG_END, *words(4 + i, seed + 10 * i + 1)]
    return prompt


def tokenize(prompt: Prompt, tiling: TilingConfig) -> tuple[list[int], list[ImageSlot]]:
    """Returns a prompt's ids and where its pictures stand."""
    ids: list[int] = []
    images = []
    for entry in prompt:
        if isinstance(entry, int):
            ids.append(entry)
            continue
        height, width = entry.pixels.shape[:2]
        grid = tile_grid(width, height, tiling)
        num_tokens = num_image_tokens(grid, tiling)
        images.append(ImageSlot(entry.key, len(ids), num_tokens, grid, width, height))
        ids += [IMG_CONTEXT] * num_tokens
    return ids, images


@dataclass
class Answer:
    """What a request got so far."""

    outputs: list[TokenOutput] = field(default_factory=list)
    started: Started | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        return [output.token_id for output in self.outputs]

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None while it runs."""
        return self.outputs[-1].finish_reason if self.outputs else None


@cache
def loaded(path: Path) -> InternVLModel:
    """Returns a checkpoint's model, in float32."""
    config = load_model_config(path)
    return load_model(config, path, dtype=torch.float32, device=torch.device("cpu"), load_workers=2)


def engine_config(path: Path, model: ModelConfig, **changes: object) -> EngineConfig:
    """Returns the configuration of a small engine; `changes` replace fields."""
    config = EngineConfig(
        model_dir=str(path),
        model=model,
        device="cpu",
        data_type="fp32",
        mem_fraction=0.9,
        page_size=16,
        max_total_token_num=2048,
        max_req_total_len=1024,
        running_max_req_size=16,
        chunked_prefill_size=256,
        max_itl_ms=0.0,
        batch_max_tokens=1024,
        prefix_cache=True,
        cache_capacity=20,
        cache_bytes=None,
        visual_infer_batch_size=None,
        load_workers=1,
        arena_bytes=ARENA_BYTES,
    )
    return msgspec.structs.replace(config, **changes)


class Driver:
    """An engine over a checkpoint, with the front's side of its messages.

    Args:
        path: The checkpoint.
        changes: Fields of the configuration that differ from `engine_config`.
    """

    def __init__(self, path: Path, **changes: object) -> None:
        self.model = loaded(path)
        self.config = engine_config(path, self.model.config, **changes)
        self.arena = bytearray(ARENA_BYTES)
        memory = plan_memory(self.config)
        device = torch.device("cpu")
        self.runner = Runner(self.config, self.model, device, memory, memoryview(self.arena))
        self.engine = Engine(self.config, memory, self.runner, self._receive)
        self.answers: dict[int, Answer] = {}
        self.needs: list[NeedPixels] = []
        self.num_asked = 0
        self.regions: dict[int, Picture] = {}
        self._pictures: dict[bytes, Picture] = {}
        self._next_id = count(1)

    def add(self, prompt: Prompt, sampling: SamplingParams, priority: int = 0) -> int:
        """Sends a request and returns its id."""
        tiling = self.config.model.tiling
        assert tiling is not None
        ids, images = tokenize(prompt, tiling)
        self._pictures |= {entry.key: entry for entry in prompt if isinstance(entry, Picture)}
        request_id = next(self._next_id)
        self.answers[request_id] = Answer()
        self.engine.handle(AddRequest(request_id, ids, sampling, images, priority))
        return request_id

    def abort(self, request_id: int) -> None:
        """Aborts a request."""
        self.engine.handle(Abort(request_id))

    def flush(self) -> None:
        """Drops what the caches hold for nobody."""
        self.engine.handle(FlushCaches())

    def step(self) -> bool:
        """Supplies the pixels asked for and runs one step; False if nothing was computed."""
        while self.needs:
            self._supply(self.needs.pop(0))
        return self.engine.step()

    def run(self) -> None:
        """Serves until nothing is left to compute."""
        while self.step() or self.needs:
            pass

    def generate(self, *prompts: Prompt, sampling: SamplingParams) -> list[list[int]]:
        """Returns the answers to requests that arrive at once."""
        requests = [self.add(prompt, sampling) for prompt in prompts]
        self.run()
        assert all(self.answers[i].finish_reason for i in requests)
        return [self.answers[i].ids for i in requests]

    def check_nothing_is_held(self) -> None:
        """Checks that no request holds anything any more."""
        stats = self.engine.stats()
        assert stats["num_requests_running"] == stats["num_requests_waiting"] == 0
        assert stats["kv_pages_used"] == 0
        assert not self.regions, "pixels are never given back"
        assert self.runner.num_pending_pictures == 0
        self.flush()
        stats = self.engine.stats()
        assert stats["kv_pages_cached"] == stats["image_cache_images"] == 0
        assert stats['image_cache_bytes{tier="host"}'] == 0

    def _supply(self, need: NeedPixels) -> None:
        shown = self._pictures[need.key]
        height, width = shown.pixels.shape[:2]
        offset = max((o + p.pixels.nbytes for o, p in self.regions.items()), default=0)
        self.arena[offset : offset + shown.pixels.nbytes] = shown.pixels.tobytes()
        self.regions[offset] = shown
        self.engine.handle(Pixels(need.key, offset, width, height))

    def _receive(self, *messages: object) -> None:
        for message in messages:
            match message:
                case StepOutputs():
                    for output in message.outputs:
                        self.answers[output.request_id].outputs.append(output)
                case NeedPixels():
                    self.num_asked += 1
                    self.needs.append(message)
                case PixelsDone():
                    shown = self.regions.pop(message.offset)
                    assert shown.key == message.key
                    end = message.offset + shown.pixels.nbytes
                    self.arena[message.offset : end] = bytes(shown.pixels.nbytes)
                case Started():
                    self.answers[message.request_id].started = message


def greedy(num_tokens: int, **changes: Any) -> SamplingParams:
    """Returns greedy sampling of exactly so many tokens."""
    return SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True, **changes)


def oracle_inputs(prompt: Prompt, tiling: TilingConfig) -> dict[str, Tensor]:
    """Returns what transformers' model is given for a prompt; pixels are made with Pillow."""
    ids, images = tokenize(prompt, tiling)
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    shown = [entry for entry in prompt if isinstance(entry, Picture)]
    tiles = [
        tile
        for entry, slot in zip(shown, images, strict=True)
        for tile in _tiles(entry, slot, tiling)
    ]
    if tiles:
        values = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(tiling.mean).view(3, 1, 1)
        inputs["pixel_values"] = (values - mean) / torch.tensor(tiling.std).view(3, 1, 1)
    return inputs


def _tiles(shown: Picture, slot: ImageSlot, tiling: TilingConfig) -> list[Pixel]:
    size, (cols, rows, thumbnail) = tiling.tile_size, msgspec.structs.astuple(slot.grid)
    whole = Image.fromarray(shown.pixels)
    resized = whole.resize((cols * size, rows * size), Image.Resampling.BICUBIC)
    boxes = [
        (x * size, y * size, (x + 1) * size, (y + 1) * size)
        for y in range(rows)
        for x in range(cols)
    ]
    tiles = [resized.crop(box) for box in boxes]
    if thumbnail:
        tiles.append(whole.resize((size, size), Image.Resampling.BICUBIC))
    return [np.asarray(tile) for tile in tiles]


def reference_ids(path: Path, prompt: Prompt, num_tokens: int) -> list[int]:
    """Returns transformers' greedy continuation; `path` is a checkpoint in the native layout."""
    tiling = load_model_config(path).tiling
    assert tiling is not None
    inputs = oracle_inputs(prompt, tiling)
    ids: Tensor = load_reference(path).generate(
        **inputs, max_new_tokens=num_tokens, do_sample=False
    )
    continuation: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return continuation
