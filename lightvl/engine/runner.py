"""Executes step plans: owns the model's tensors, never decides anything."""

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from lightvl.config import DataType, EngineConfig
from lightvl.engine.batch import BatchBuilder, StepBatch
from lightvl.engine.memory import MemoryPlan
from lightvl.engine.plan import Drawn, Row, StepPlan, StepResult
from lightvl.engine.sampler import Sampler
from lightvl.layers.context import ForwardContext
from lightvl.models.registry import InternVLModel
from lightvl.vision.pool import VisionPool
from lightvl.vision.preprocess import Preprocessor

TORCH_DTYPES: dict[DataType, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


class Runner:
    """One rank's model, KV cache, embedding arena and per-slot state."""

    def __init__(
        self,
        config: EngineConfig,
        model: InternVLModel,
        device: torch.device,
        memory: MemoryPlan,
        pixels: memoryview | None,
    ) -> None:
        """Allocates everything that serving needs.

        Args:
            config: The engine's configuration.
            model: Loaded, on `device`.
            device: Where tensors live.
            memory: Sizes of the KV cache and the embedding arena.
            pixels: The shared-memory arena; None for a model without pictures.
        """
        self._model = model
        text = config.model.text
        dtype = TORCH_DTYPES[config.data_type]
        self._batches = BatchBuilder(
            num_slots=config.running_max_req_size,
            max_tokens=config.batch_max_tokens + config.running_max_req_size,
            max_seq_len=memory.max_req_total_len,
            page_size=config.page_size,
        )
        self._sampler = Sampler(config.running_max_req_size, text.vocab_size, config.model.eos_ids)
        shape = (memory.num_kv_pages, text.num_kv_heads, config.page_size, text.head_dim)
        self._kv_caches = [
            (
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(text.num_layers)
        ]
        self._vision = _vision_pool(config, model, memory, pixels)

    @property
    def num_pending_pictures(self) -> int:
        """Pictures whose patches wait for the tower."""
        return 0 if self._vision is None else self._vision.num_pending_pictures

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step: joins, pictures, tiles, rows.

        Returns:
            An id for each row that samples, in row order, and what the two parts took.
        """
        for join in plan.joins:
            self._batches.join(join)
            self._sampler.join(join)
        begin, preprocess_s = perf_counter(), 0.0
        if self._vision is not None:
            preprocess_s = self._vision.run(plan.pictures, plan.tiles)
        middle = perf_counter()
        drawn = self._run_rows(plan.rows, plan.masks) if plan.rows else []
        return StepResult(drawn, middle - begin, perf_counter() - middle, preprocess_s)

    def _run_rows(self, rows: Sequence[Row], masks: dict[int, bytes]) -> list[Drawn]:
        batch = self._batches.build(rows)
        arena = self._vision.arena if self._vision is not None and batch.has_pictures else None
        hidden = self._model.embed(batch.ids, batch.image_rows, arena)
        hidden = self._model.forward(hidden, self._context(batch))
        slots = [row.slot for row in rows if row.sample]
        if not slots:
            return []
        logits = self._model.logits(_last_tokens(hidden, rows, batch))
        return self._sampler.draw(logits, slots, self._batches.last_ids, masks)

    def _context(self, batch: StepBatch) -> ForwardContext:
        cos_sin, rope_rows = self._model.rotary.rows(batch.positions, batch.effective_lens)
        return ForwardContext(
            cos_sin=cos_sin,
            rope_rows=rope_rows,
            slots=batch.kv_slots,
            page_table=batch.page_table,
            cu_q_lens=batch.cu_q_lens,
            context_lens=batch.context_lens,
            max_q_len=batch.max_q_len,
            kv_caches=self._kv_caches,
        )


def _last_tokens(hidden: Tensor, rows: Sequence[Row], batch: StepBatch) -> Tensor:
    """Returns the hidden states [S, C] after which ids are drawn."""
    sampled = [i for i, row in enumerate(rows) if row.sample]
    if len(sampled) == len(hidden):
        return hidden
    last = batch.cu_q_lens[1:].index_select(0, torch.tensor(sampled)) - 1
    return hidden.index_select(0, last)


def _vision_pool(
    config: EngineConfig, model: InternVLModel, memory: MemoryPlan, pixels: memoryview | None
) -> VisionPool | None:
    tiling, vision = config.model.tiling, config.model.vision
    if vision is None or tiling is None or pixels is None:
        return None
    dtype = TORCH_DTYPES[config.data_type]
    return VisionPool(
        model,
        Preprocessor(tiling, vision.patch_size, dtype, pixels),
        memory.num_embedding_pages,
        (vision.image_size // vision.patch_size) ** 2,
        tiling.tokens_per_tile,
        config.model.text.hidden_size,
        dtype,
    )
