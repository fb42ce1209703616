"""Sampling in float64, down to the noise of each token, and the shapes that are tested and timed.

Sorting, where the operator selects; probabilities, where it compares scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvl.ops.sampling import SampleParams

GREEDY_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SampleCase:
    """Rows, vocabulary and the filters that all rows share."""

    num_rows: int
    vocab_size: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


SAMPLE_CASES = (
    SampleCase(1, 2048, temperature=0.0),
    SampleCase(7, 8191, temperature=0.0),
    SampleCase(111, 500),
    SampleCase(7, 8191, temperature=0.7, top_k=50, top_p=0.9),
    SampleCase(111, 1000, temperature=2.0, top_p=0.5),
    SampleCase(64, 111, top_k=7, min_p=0.1),
    SampleCase(3, 49152, temperature=0.8, top_p=0.95),
    SampleCase(5, 7, temperature=10.0, top_k=6),
    SampleCase(2, 1),
    SampleCase(0, 500),
)
SAMPLE_SPEED_CASES = tuple(
    SampleCase(num_rows, vocab_size, temperature, top_k, top_p)
    for num_rows, vocab_size in ((1, 2048), (16, 2048), (1, 49152), (16, 49152), (16, 151936))
    for temperature, top_k, top_p in ((0.0, 0, 1.0), (0.8, 0, 1.0), (0.8, 50, 1.0), (0.8, 0, 0.9))
)


def make_sample_params(case: SampleCase, seed: int = 0) -> SampleParams:
    """Return the case's filters for each row, with seeds and offsets that differ."""
    rows = case.num_rows
    generator = torch.Generator().manual_seed(seed)
    return SampleParams(
        temperature=torch.full((rows,), case.temperature),
        top_k=torch.full((rows,), case.top_k, dtype=torch.int32),
        top_p=torch.full((rows,), case.top_p),
        min_p=torch.full((rows,), case.min_p),
        seeds=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        offsets=torch.randint(2**40, (rows,), generator=generator),
    )


def make_logits(case: SampleCase, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return random [S, V] logits with a spread like a language model's."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((case.num_rows, case.vocab_size), generator=generator) * 3).to(dtype)


def philox_reference(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return one block of Philox4x32-10 under the 64-bit key `seed`, in Python's integers."""
    mask = 2**32 - 1
    c0, c1, c2, c3 = counter
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c2 = product1 >> 32 ^ c1 ^ k0, product0 >> 32 ^ c3 ^ k1
        c1, c3 = product1 & mask, product0 & mask
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return c0, c1, c2, c3


def gumbel_reference(seed: int, offset: int, ids: list[int]) -> Tensor:
    """Return the float64 Gumbel noise of tokens `ids` under (seed, offset)."""
    mask = 2**32 - 1
    words = []
    for token in ids:
        n, word = token // 64 * 16 + token % 16, token // 16 % 4
        counter = (n, offset & mask, offset >> 32 & mask, 0)
        words.append(philox_reference(seed, counter)[word])
    v = (np.array(words, dtype=np.float64) // 2 + 0.5) * 2.0**-31
    return torch.from_numpy(-np.log(-np.log1p(-v)))


def edited_logits(logits: Tensor, params: SampleParams, row: int) -> Tensor:
    """Return one row of logits in float64 after penalties, bias and mask."""
    x = logits[row].double()
    if params.penalties is not None and params.counts is not None:
        assert params.count_rows is not None
        count_row = int(params.count_rows[row])
        if count_row >= 0:
            counts = params.counts[count_row].double()
            repetition, presence, frequency = params.penalties[row].double().tolist()
            scaled = torch.where(x > 0, x / repetition, x * repetition)
            x = torch.where(counts > 0, scaled - presence - frequency * counts, x)
    if params.bias_offsets is not None:
        assert params.bias_ids is not None
        assert params.bias_values is not None
        begin, end = params.bias_offsets[row : row + 2].tolist()
        ids, values = params.bias_ids[begin:end].long(), params.bias_values[begin:end]
        x = x.index_add(0, ids, values.double())
    if params.allowed_mask is not None:
        bits = torch.arange(x.numel())
        allowed = params.allowed_mask[row][bits // 32] >> bits % 32 & 1
        x = x.masked_fill(allowed == 0, -torch.inf)
    return x


def survivors_reference(scores: Tensor, params: SampleParams, row: int) -> Tensor:
    """Return which of the scores take part in the draw, bool [V]; greedy: the maximum alone."""
    temperature = float(params.temperature[row])
    if temperature < GREEDY_TEMPERATURE:
        return torch.arange(scores.numel()) == scores.argmax()
    top_k, top_p, min_p = (float(x[row]) for x in (params.top_k, params.top_p, params.min_p))
    kept = scores > -torch.inf
    if 0 < top_k < scores.numel():
        kept &= scores >= scores.sort(descending=True).values[int(top_k) - 1]
    if top_p < 1:
        probabilities = (scores / temperature).masked_fill(~kept, -torch.inf).softmax(0)
        sorted_probabilities = probabilities.sort(descending=True).values
        last = int((sorted_probabilities.cumsum(0) < top_p).sum())
        kept &= probabilities >= sorted_probabilities[min(last, scores.numel() - 1)]
    if min_p > 0:
        kept &= scores >= scores.max() + temperature * np.log(min_p)
    return kept


def sample_reference(logits: Tensor, params: SampleParams) -> Tensor:
    """Return the ids [S] that the operator draws."""
    ids = []
    for row in range(logits.shape[0]):
        scores = edited_logits(logits, params, row)
        kept = survivors_reference(scores, params, row).nonzero().flatten()
        temperature = max(float(params.temperature[row]), GREEDY_TEMPERATURE)
        noise = gumbel_reference(int(params.seeds[row]), int(params.offsets[row]), kept.tolist())
        ids.append(int(kept[(scores[kept] / temperature + noise).argmax()]))
    return torch.tensor(ids, dtype=torch.int64)
