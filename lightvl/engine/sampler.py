"""Draws the next ids: each slot's parameters, gathered per batch, and one call of the operator.

Parameters lie in arrays indexed by slot. While the same slots draw step after step, which is what
decoding is, the gathered tensors are used again and only the draw counters move.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightvl import ops
from lightvl.engine.plan import Drawn, Join
from lightvl.types import SamplingParams

NEVER = 1 << 62
_NO_MASKS: dict[int, bytes] = {}


@dataclass(frozen=True, slots=True)
class _Constraints:
    """What few sequences ask for.

    Attributes:
        penalized: Whether occurrences are counted.
        bias: Added to the logits, by id.
        allowed: Bit mask of the ids that can be drawn, int32 [ceil(V/32)].
        end_ids: Masked while fewer than `masked_until` tokens are drawn.
    """

    penalized: bool
    bias: dict[int, float]
    allowed: NDArray[np.int32] | None
    end_ids: frozenset[int]
    masked_until: int

    def bias_at(self, num_drawn: int) -> dict[int, float]:
        """Returns the bias of the next draw, end ids included while they are masked."""
        if num_drawn >= self.masked_until:
            return self.bias
        return self.bias | dict.fromkeys(self.end_ids, float("-inf"))


Constrained = dict[int, _Constraints]


@dataclass(slots=True)
class _Batch:
    """What the operator is given for one list of slots.

    Attributes:
        slots: The slots that draw, in row order.
        slot_ids: The same as a tensor, int64 [S].
        params: The operator's arguments; `offsets` is counted up in place.
        steps_left: Draws until end ids of some row are no longer masked.
    """

    slots: list[int]
    slot_ids: Tensor
    params: ops.SampleParams
    steps_left: int


class Sampler:
    """The sampling state of all slots."""

    def __init__(self, num_slots: int, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """Allocates the arrays of parameters; the table of counts waits until it is needed.

        Args:
            num_slots: Sequences that hold a slot at once.
            vocab_size: Ids that can be drawn, V.
            eos_ids: The checkpoint's end ids.
        """
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(i for i in eos_ids if 0 <= i < vocab_size)
        self._temperature = np.zeros(num_slots, dtype=np.float32)
        self._top_k = np.zeros(num_slots, dtype=np.int32)
        self._top_p = np.ones(num_slots, dtype=np.float32)
        self._min_p = np.zeros(num_slots, dtype=np.float32)
        self._seeds = np.zeros(num_slots, dtype=np.int64)
        self._offsets = np.zeros(num_slots, dtype=np.int64)
        self._penalties = np.zeros((num_slots, 3), dtype=np.float32)
        self._num_logprobs = [-1] * num_slots
        self._constraints: dict[int, _Constraints] = {}
        self._counts: Tensor | None = None
        self._batch: _Batch | None = None

    def join(self, join: Join) -> None:
        """Resets a slot to a sequence's parameters."""
        slot, sampling = join.slot, join.sampling
        self._batch = None
        self._temperature[slot] = sampling.temperature
        self._top_k[slot] = min(sampling.top_k, self._vocab_size)
        self._top_p[slot] = sampling.top_p
        self._min_p[slot] = sampling.min_p
        self._seeds[slot] = sampling.seed
        self._offsets[slot] = join.num_generated
        self._penalties[slot] = (
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        self._num_logprobs[slot] = sampling.num_logprobs
        if sampling.penalized:
            self._count(slot, join.counted_ids)
        self._constrain(slot, sampling)

    def draw(
        self,
        logits: Tensor,
        slots: list[int],
        last_ids: Tensor,
        masks: Mapping[int, bytes] = _NO_MASKS,
    ) -> list[Drawn]:
        """Draws one id per row.

        Args:
            logits: [S, V].
            slots: The S slots that the rows belong to.
            last_ids: int64, indexed by slot; takes the drawn ids.
            masks: By slot, what may be drawn this time: a bit for each id, int32 [ceil(V/32)].

        Returns:
            One entry per row, in row order.
        """
        batch = self._batch
        if batch is None or batch.slots != slots or not batch.steps_left:
            batch = self._batch = self._gather(slots)
        params = self._masked(batch, masks) if masks else batch.params
        result = ops.sample(logits, params)
        last_ids.index_copy_(0, batch.slot_ids, result.ids)
        batch.params.offsets.add_(1)
        batch.steps_left -= 1
        self._offsets[slots] += 1
        ids: list[int] = result.ids.tolist()
        if result.logprobs is None:
            return [Drawn(slot, token_id) for slot, token_id in zip(slots, ids, strict=True)]
        return self._with_logprobs(slots, ids, result)

    def _masked(self, batch: _Batch, masks: Mapping[int, bytes]) -> ops.SampleParams:
        """Returns a batch's parameters with the masks of this draw in them."""
        lasting = batch.params.allowed_mask
        shape = (len(batch.slots), -(-self._vocab_size // 32))
        rows = (
            np.full(shape, -1, dtype=np.int32) if lasting is None else lasting.cpu().numpy().copy()
        )
        for row, slot in enumerate(batch.slots):
            if slot in masks:
                rows[row] &= np.frombuffer(masks[slot], dtype=np.int32)
        return replace(batch.params, allowed_mask=torch.from_numpy(rows).to(batch.slot_ids.device))

    def _count(self, slot: int, ids: list[int]) -> None:
        if self._counts is None:
            self._counts = torch.empty(self._num_slots, self._vocab_size, dtype=torch.int16)
        counts = np.bincount(np.array(ids, dtype=np.int64), minlength=self._vocab_size)
        self._counts.numpy()[slot] = np.minimum(counts, np.iinfo(np.int16).max)

    def _constrain(self, slot: int, sampling: SamplingParams) -> None:
        allowed = sampling.allowed_token_ids
        end_ids = frozenset(i for i in sampling.stop_token_ids if 0 <= i < self._vocab_size)
        if not sampling.ignore_eos:
            end_ids |= self._eos_ids
        maskable = bool(end_ids) and (allowed is None or not end_ids.issuperset(allowed))
        if sampling.constraint is not None:  # the masks of its draws see to it
            maskable = False
        masked_until = sampling.min_new_tokens - 1 if maskable else 0
        self._constraints.pop(slot, None)
        if sampling.penalized or sampling.logit_bias or allowed is not None or masked_until > 0:
            self._constraints[slot] = _Constraints(
                penalized=sampling.penalized,
                bias=sampling.logit_bias,
                allowed=None if allowed is None else self._bitmask(allowed),
                end_ids=end_ids,
                masked_until=masked_until,
            )

    def _bitmask(self, allowed: Sequence[int]) -> NDArray[np.int32]:
        bits = np.zeros(-(-self._vocab_size // 32) * 32, dtype=np.uint8)
        bits[list(allowed)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _gather(self, slots: list[int]) -> _Batch:
        num_logprobs = max(self._num_logprobs[slot] for slot in slots)
        constrained = {s: c for s in slots if (c := self._constraints.get(s)) is not None}
        params = ops.SampleParams(
            temperature=torch.from_numpy(self._temperature[slots]),
            top_k=torch.from_numpy(self._top_k[slots]),
            top_p=torch.from_numpy(self._top_p[slots]),
            min_p=torch.from_numpy(self._min_p[slots]),
            seeds=torch.from_numpy(self._seeds[slots]),
            offsets=torch.from_numpy(self._offsets[slots]),
            **self._penalty_params(slots, constrained),
            **self._bias_params(slots, constrained),
            **self._mask_params(slots, constrained),
            logprobs=num_logprobs >= 0,
            num_top=max(num_logprobs, 0),
        )
        masked = (c.masked_until - int(self._offsets[s]) for s, c in constrained.items())
        steps_left = min((steps for steps in masked if steps > 0), default=NEVER)
        return _Batch(slots, torch.tensor(slots), params, steps_left)

    def _penalty_params(self, slots: list[int], constrained: Constrained) -> dict[str, Tensor]:
        penalized = {slot for slot, c in constrained.items() if c.penalized}
        if not penalized or self._counts is None:
            return {}
        rows = [slot if slot in penalized else -1 for slot in slots]
        return {
            "penalties": torch.from_numpy(self._penalties[slots]),
            "counts": self._counts,
            "count_rows": torch.tensor(rows, dtype=torch.int32),
        }

    def _bias_params(self, slots: list[int], constrained: Constrained) -> dict[str, Tensor]:
        biases: list[dict[int, float]] = [
            constrained[slot].bias_at(int(self._offsets[slot])) if slot in constrained else {}
            for slot in slots
        ]
        if not any(biases):
            return {}
        ends = np.cumsum([0, *(len(bias) for bias in biases)])
        values = [value for bias in biases for value in bias.values()]
        return {
            "bias_offsets": torch.from_numpy(ends.astype(np.int32)),
            "bias_ids": torch.tensor([i for bias in biases for i in bias], dtype=torch.int32),
            "bias_values": torch.tensor(values, dtype=torch.float32),
        }

    def _mask_params(self, slots: list[int], constrained: Constrained) -> dict[str, Tensor]:
        masks = {slot: c.allowed for slot, c in constrained.items() if c.allowed is not None}
        if not masks:
            return {}
        everything = np.full(-(-self._vocab_size // 32), -1, dtype=np.int32)
        return {
            "allowed_mask": torch.from_numpy(
                np.stack([masks.get(slot, everything) for slot in slots])
            )
        }

    def _with_logprobs(
        self, slots: list[int], ids: list[int], result: ops.SampleResult
    ) -> list[Drawn]:
        assert result.logprobs is not None
        logprobs = result.logprobs.tolist()
        top: list[list[tuple[int, float]]] = [[] for _ in slots]
        if result.top_ids is not None and result.top_logprobs is not None:
            pairs = zip(result.top_ids.tolist(), result.top_logprobs.tolist(), strict=True)
            top = [list(zip(row_ids, row_logprobs, strict=True)) for row_ids, row_logprobs in pairs]
        drawn = []
        for slot, token_id, logprob, row_top in zip(slots, ids, logprobs, top, strict=True):
            wanted = self._num_logprobs[slot]
            if wanted < 0:
                drawn.append(Drawn(slot, token_id))
            else:
                drawn.append(Drawn(slot, token_id, logprob, row_top[:wanted] or None))
        return drawn
